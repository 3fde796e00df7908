"""Scales for the folds of a block: AWQ's, searched on the rounded products, and SmoothQuant's, from the ranges."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tersor.network.blocks.operators import Call, watch
from tersor.network.blocks.scale_transfers import ScaledAxis, ScaleTransfer
from tersor.network.blocks.unchanged import Call as Recorded
from tersor.numerics import QuantSpec, quantize_tensor
from tersor.observers.gram import Gram

GRID = 20
Rounded = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Read:
    """One matrix that reads through a fold: a linear layer's, or one expert's, and what its inputs were.

    Args:
        weight: ``[out, in]``, float32.
        channels: ``[in]``, the element of the fold's scale that belongs to each column; -1 for none.
        gram: of its inputs; mean, peak: their mean and largest magnitude, ``[in]``.
    """

    weight: Float[Tensor, "out columns"]
    channels: Tensor
    gram: Gram
    mean: Tensor
    peak: Tensor


@dataclass(frozen=True, eq=False)
class Scaling:
    """The scale found for a fold, to be given to ``apply``.

    ``error`` and ``unscaled``: the squared error of the readers' outputs, summed over the rows, with and without it.
    """

    transfer: ScaleTransfer
    scale: Float[Tensor, " channels"]
    alpha: float
    error: float
    unscaled: float


def read(block: nn.Module, scale_transfers: Sequence[ScaleTransfer], calls: Iterable[Recorded]) -> list[list[Read]]:
    """What each fold's readers read in these calls; one list for each fold, a Gram matrix for each input.

    Layers that read one value in one call share its Gram matrix.
    """
    wanted = {t.name for transfer in scale_transfers for t in transfer.readers}
    seen: dict[tuple[str, int], tuple[Gram, Tensor, Tensor]] = {}
    axes: dict[tuple[str, int], tuple[int, int]] = {}
    for args, kwargs in calls:
        inputs: dict[object, tuple[Tensor, tuple[Gram, Tensor, Tensor]]] = {}

        def see(call: Call, inputs: dict = inputs) -> None:
            for product in call.products():
                view = product.weight
                if view.name not in wanted or len(view.fixed) > 1:
                    continue
                x = product.x[product.index]
                x = x.reshape(-1, x.shape[-1])
                if not len(x):
                    continue
                key = view.name, next(iter(view.fixed.values()), -1)
                # The inputs are kept until the call's end, so that no other one can take their place in memory.
                place = x.data_ptr(), x.shape, x.stride()
                if place not in inputs:
                    size = x.float().abs()
                    inputs[place] = x, (Gram.of(x[None]), size.mean(0), size.amax(0))
                seen[key] = _merged(seen[key], inputs[place][1]) if key in seen else inputs[place][1]
                axes[key] = view.axes[0][0], view.axes[1][0]

        watch(block, args, kwargs, see)
    return [[r for t in f.readers for r in _of(block.get_parameter(t.name), t, seen, axes)] for f in scale_transfers]


def _merged(a: tuple[Gram, Tensor, Tensor], b: tuple[Gram, Tensor, Tensor]) -> tuple[Gram, Tensor, Tensor]:
    part = b[0].rows / (a[0].rows + b[0].rows)
    return a[0].merged(b[0]), torch.lerp(a[1], b[1], part), torch.maximum(a[2], b[2])


def _of(parameter: Tensor, axis: ScaledAxis, seen: dict, axes: dict) -> Iterable[Read]:
    for (name, expert), (gram, mean, peak) in seen.items():
        if name != axis.name:
            continue
        into, out = axes[name, expert]
        weight = parameter.detach().movedim((out, into), (-2, -1))
        channels = axis.channels.movedim((out, into), (-2, -1))[..., 0, :]
        if expert >= 0:
            weight, channels = weight[expert], channels[min(expert, len(channels) - 1)]
        yield Read(weight.float(), channels.to(weight.device), gram, mean, peak)


def awq_scales(
    block: nn.Module,
    scale_transfers: Sequence[ScaleTransfer],
    calls: Iterable[Recorded],
    spec: QuantSpec,
    rounded: Rounded | None = None,
) -> list[Scaling]:
    """AWQ's scale of each fold: s = mean|X|^α, with the α of 20 whose rounded products come nearest.

    Lin et al., arXiv 2306.00978: input channels that carry much are multiplied before their weights are rounded, and
    the weights' error with them divided. s is divided by √(max·min); α = 0, which changes nothing, is tried first, so
    that the error never grows. The error is that of the readers' outputs (the paper's of the enclosing module), from
    the Gram matrix of their inputs.

    Args:
        calls: args and kwargs of the block, as recorded.
        spec: how the readers' weights ``[out, in]`` will be rounded.
        rounded: what a weight becomes, where it is not plain rounding to nearest by ``spec``.

    >>> from tersor.network.blocks.scale_transfers import apply, scale_transfers
    >>> block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    >>> block[0].weight.data = torch.tensor([20.0, 1.0, 1.0, 1.0])
    >>> call = (torch.randn(50, 4),), {}
    >>> for found in awq_scales(block, scale_transfers(block, *call).found, [call], QuantSpec("int4", "channel")):
    ...     assert found.error <= found.unscaled
    ...     apply(block, found.transfer, found.scale, call)
    """
    rounded = rounded or (lambda weight: quantize_tensor(weight, spec).dequantize())
    reads = read(block, scale_transfers, calls)
    return [searched(transfer, r, rounded) for transfer, r in zip(scale_transfers, reads, strict=True)]


def searched(transfer: ScaleTransfer, reads: Sequence[Read], rounded: Rounded) -> Scaling:
    """AWQ's search for one fold."""
    size = _pooled(transfer, [r.mean for r in reads], reads, "mean")
    scale, best, unscaled = torch.ones_like(size), (float("inf"), 0.0), 0.0
    for k in range(GRID):
        tried = _balanced(size, k / GRID)
        error = sum(_error(r, rounded, tried) for r in reads)
        unscaled = error if k == 0 else unscaled
        if error < best[0]:
            scale, best = tried, (error, k / GRID)
    return Scaling(transfer, scale, best[1], best[0], unscaled)


def smooth_scales(
    block: nn.Module, scale_transfers: Sequence[ScaleTransfer], calls: Iterable[Recorded], alpha: float = 0.5
) -> list[Float[Tensor, " channels"]]:
    """SmoothQuant's scale of each fold: max|X|^α / max|W|^(1−α).

    Xiao et al., arXiv 2211.10438, for 8-bit activations: outlying channels of the readers' inputs are divided, their
    weights multiplied. A channel without input or weight keeps its 1.

    >>> from tersor.network.blocks.scale_transfers import scale_transfers
    >>> block = nn.Sequential(nn.LayerNorm(2, elementwise_affine=True), nn.Linear(2, 1, bias=False))
    >>> block[0].weight.data, block[1].weight.data = torch.tensor([16.0, 1.0]), torch.tensor([[1.0, 1.0]])
    >>> call = (torch.tensor([[1.0, -1.0]]),), {}
    >>> smooth_scales(block, scale_transfers(block, *call).found, [call])[0]
    tensor([4.0000, 1.0000])
    """
    scales = []
    for transfer, reads in zip(scale_transfers, read(block, scale_transfers, calls), strict=True):
        reach = _pooled(transfer, [r.peak for r in reads], reads, "amax")
        columns = _pooled(transfer, [r.weight.abs().amax(0) for r in reads], reads, "amax")
        alive = (reach > 0) & (columns > 0)
        scale = torch.where(alive, reach, 1.0) ** alpha / torch.where(alive, columns, 1.0) ** (1 - alpha)
        scales.append(torch.where(alive, scale.clamp(min=1e-5), 1.0))
    return scales


def _quadratic(off: Tensor, hessian: Tensor) -> Tensor:
    """d·H·dᵀ of each row."""
    return ((off @ hessian) * off).sum(1)


def _balanced(size: Tensor, alpha: float) -> Tensor:
    """Magnitudes to the power of α, around 1; a channel without any keeps its 1."""
    alive = size > 0
    scale = torch.where(alive, size, 1.0).clamp(min=1e-4) ** alpha
    if alive.any():
        scale = scale / (scale[alive].max() * scale[alive].min()).sqrt()
    return torch.where(alive, scale, 1.0)


def _pooled(transfer: ScaleTransfer, values: Sequence[Tensor], reads: Sequence[Read], how: str) -> Tensor:
    """One value for each element of the scale from those of the columns that it scales; 0 where none was seen."""
    device = reads[0].weight.device if reads else None
    total = torch.zeros(transfer.size, device=device)
    for value, r in zip(values, reads, strict=True):
        seen = r.channels >= 0
        total.scatter_reduce_(0, r.channels[seen].long(), value[seen], "sum" if how == "mean" else how)
    if how == "mean":
        count = torch.zeros_like(total)
        for r in reads:
            seen = r.channels >= 0
            count.scatter_add_(0, r.channels[seen].long(), torch.ones_like(r.mean[seen]))
        total /= count.clamp(min=1)
    return total


def _error(r: Read, rounded: Rounded, scale: Tensor) -> float:
    factor = torch.where(r.channels >= 0, scale[r.channels.clamp(min=0).long()], 1.0)
    off = rounded(r.weight * factor) / factor - r.weight
    # The Gram matrix is twice the mean over the rows.
    return float(_quadratic(off, r.gram.hessian[0]).sum(dtype=torch.float64)) * r.gram.rows / 2
