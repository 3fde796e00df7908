"""Scales for a block's scale transfers: AWQ's, searched on the quantized products, and SmoothQuant's, from ranges."""

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
RoundWeight = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ReaderStatistics:
    """A matrix that reads through a scale transfer (a linear layer's, or one expert's), with statistics of its inputs.

    Args:
        weight: ``[out, in]``, float32.
        channels: ``[in]``, the element of the scale that applies to each column; -1 for none.
        gram: the Gram matrix of its inputs.
        mean: the mean magnitude of its inputs, ``[in]``.
        peak: the largest magnitude of its inputs, ``[in]``.
    """

    weight: Float[Tensor, "out columns"]
    channels: Tensor
    gram: Gram
    mean: Tensor
    peak: Tensor


@dataclass(frozen=True, eq=False)
class Scaling:
    """The scale chosen for a scale transfer, to pass to ``apply``.

    ``error`` and ``unscaled`` are the squared errors of the readers' outputs with and without it, summed over the rows.
    """

    transfer: ScaleTransfer
    scale: Float[Tensor, " channels"]
    alpha: float
    error: float
    unscaled: float


def reader_statistics(
    block: nn.Module, scale_transfers: Sequence[ScaleTransfer], calls: Iterable[Recorded]
) -> list[list[ReaderStatistics]]:
    """Statistics of the readers' inputs over the calls, one list for each scale transfer.

    Layers that read the same value in a call share its Gram matrix.
    """
    names = {t.name for transfer in scale_transfers for t in transfer.readers}
    stats: dict[tuple[str, int], tuple[Gram, Tensor, Tensor]] = {}
    axes: dict[tuple[str, int], tuple[int, int]] = {}
    for args, kwargs in calls:
        inputs: dict[object, tuple[Tensor, tuple[Gram, Tensor, Tensor]]] = {}

        def observe(call: Call, inputs: dict = inputs) -> None:
            for product in call.products():
                view = product.weight
                if view.name not in names or len(view.fixed) > 1:
                    continue
                x = product.x[product.index]
                x = x.reshape(-1, x.shape[-1])
                if not len(x):
                    continue
                key = view.name, next(iter(view.fixed.values()), -1)
                # Keep the inputs alive until the call ends, so that no other tensor reuses their address.
                address = x.data_ptr(), x.shape, x.stride()
                if address not in inputs:
                    magnitude = x.float().abs()
                    inputs[address] = x, (Gram.of(x[None]), magnitude.mean(0), magnitude.amax(0))
                stats[key] = _merge(stats[key], inputs[address][1]) if key in stats else inputs[address][1]
                axes[key] = view.axes[0][0], view.axes[1][0]

        watch(block, args, kwargs, observe)
    return [
        [r for axis in t.readers for r in _of_axis(block.get_parameter(axis.name), axis, stats, axes)]
        for t in scale_transfers
    ]


def _merge(a: tuple[Gram, Tensor, Tensor], b: tuple[Gram, Tensor, Tensor]) -> tuple[Gram, Tensor, Tensor]:
    share = b[0].rows / (a[0].rows + b[0].rows)
    return a[0].merged(b[0]), torch.lerp(a[1], b[1], share), torch.maximum(a[2], b[2])


def _of_axis(parameter: Tensor, axis: ScaledAxis, stats: dict, axes: dict) -> Iterable[ReaderStatistics]:
    for (name, expert), (gram, mean, peak) in stats.items():
        if name != axis.name:
            continue
        into, out = axes[name, expert]
        weight = parameter.detach().movedim((out, into), (-2, -1))
        channels = axis.channels.movedim((out, into), (-2, -1))[..., 0, :]
        if expert >= 0:
            weight, channels = weight[expert], channels[min(expert, len(channels) - 1)]
        yield ReaderStatistics(weight.float(), channels.to(weight.device), gram, mean, peak)


def awq_scales(
    block: nn.Module,
    scale_transfers: Sequence[ScaleTransfer],
    calls: Iterable[Recorded],
    spec: QuantSpec,
    round_weight: RoundWeight | None = None,
) -> list[Scaling]:
    """AWQ's scale for each scale transfer: s = mean|X|^α, with the best of 20 values of α.

    Lin et al., arXiv 2306.00978: the weights of salient input channels are multiplied before rounding, which divides
    their error. s is divided by √(max·min); α = 0, no change, is tried first, so the error never grows. The error is
    that of the readers' outputs (in the paper, the enclosing module's), from the Gram matrix of their inputs.

    Args:
        calls: recorded args and kwargs of the block.
        spec: the spec that the readers' weights ``[out, in]`` will be quantized to.
        round_weight: how a weight is quantized and dequantized; default: round to nearest with ``spec``.

    >>> from tersor.network.blocks.scale_transfers import apply, scale_transfers
    >>> block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    >>> block[0].weight.data = torch.tensor([20.0, 1.0, 1.0, 1.0])
    >>> call = (torch.randn(50, 4),), {}
    >>> for scaling in awq_scales(block, scale_transfers(block, *call).found, [call], QuantSpec("int4", "channel")):
    ...     assert scaling.error <= scaling.unscaled
    ...     apply(block, scaling.transfer, scaling.scale, call)
    """
    round_weight = round_weight or (lambda weight: quantize_tensor(weight, spec).dequantize())
    reads = reader_statistics(block, scale_transfers, calls)
    return [search_scale(transfer, r, round_weight) for transfer, r in zip(scale_transfers, reads, strict=True)]


def search_scale(transfer: ScaleTransfer, reads: Sequence[ReaderStatistics], round_weight: RoundWeight) -> Scaling:
    """AWQ's search for one scale transfer."""
    magnitude = _pool(transfer, [r.mean for r in reads], reads, "mean")
    scale, best, unscaled = torch.ones_like(magnitude), (float("inf"), 0.0), 0.0
    for k in range(GRID):
        trial = _normalized_power(magnitude, k / GRID)
        error = sum(_error(r, round_weight, trial) for r in reads)
        unscaled = error if k == 0 else unscaled
        if error < best[0]:
            scale, best = trial, (error, k / GRID)
    return Scaling(transfer, scale, best[1], best[0], unscaled)


def smooth_scales(
    block: nn.Module, scale_transfers: Sequence[ScaleTransfer], calls: Iterable[Recorded], alpha: float = 0.5
) -> list[Float[Tensor, " channels"]]:
    """SmoothQuant's scale for each scale transfer: max|X|^α / max|W|^(1−α).

    Xiao et al., arXiv 2211.10438, for 8-bit activations: outlier channels of the readers' inputs are divided, their
    weights multiplied. A channel whose inputs or weights are all zero keeps a scale of 1.

    >>> from tersor.network.blocks.scale_transfers import scale_transfers
    >>> block = nn.Sequential(nn.LayerNorm(2, elementwise_affine=True), nn.Linear(2, 1, bias=False))
    >>> block[0].weight.data, block[1].weight.data = torch.tensor([16.0, 1.0]), torch.tensor([[1.0, 1.0]])
    >>> call = (torch.tensor([[1.0, -1.0]]),), {}
    >>> smooth_scales(block, scale_transfers(block, *call).found, [call])[0]
    tensor([4.0000, 1.0000])
    """
    scales = []
    for transfer, reads in zip(scale_transfers, reader_statistics(block, scale_transfers, calls), strict=True):
        peak = _pool(transfer, [r.peak for r in reads], reads, "amax")
        columns = _pool(transfer, [r.weight.abs().amax(0) for r in reads], reads, "amax")
        alive = (peak > 0) & (columns > 0)
        scale = torch.where(alive, peak, 1.0) ** alpha / torch.where(alive, columns, 1.0) ** (1 - alpha)
        scales.append(torch.where(alive, scale.clamp(min=1e-5), 1.0))
    return scales


def _quadratic(off: Tensor, hessian: Tensor) -> Tensor:
    """d·H·dᵀ of each row."""
    return ((off @ hessian) * off).sum(1)


def _normalized_power(magnitude: Tensor, alpha: float) -> Tensor:
    """Magnitudes to the power of α, normalized around 1; a channel of magnitude 0 gets 1."""
    alive = magnitude > 0
    scale = torch.where(alive, magnitude, 1.0).clamp(min=1e-4) ** alpha
    if alive.any():
        scale = scale / (scale[alive].max() * scale[alive].min()).sqrt()
    return torch.where(alive, scale, 1.0)


def _pool(transfer: ScaleTransfer, values: Sequence[Tensor], reads: Sequence[ReaderStatistics], how: str) -> Tensor:
    """One value for each element of the scale from those of the columns that it scales; 0 where none was seen."""
    device = reads[0].weight.device if reads else None
    total = torch.zeros(transfer.size, device=device)
    for value, r in zip(values, reads, strict=True):
        stats = r.channels >= 0
        total.scatter_reduce_(0, r.channels[stats].long(), value[stats], "sum" if how == "mean" else how)
    if how == "mean":
        count = torch.zeros_like(total)
        for r in reads:
            stats = r.channels >= 0
            count.scatter_add_(0, r.channels[stats].long(), torch.ones_like(r.mean[stats]))
        total /= count.clamp(min=1)
    return total


def _error(r: ReaderStatistics, round_weight: RoundWeight, scale: Tensor) -> float:
    factor = torch.where(r.channels >= 0, scale[r.channels.clamp(min=0).long()], 1.0)
    error_of_weight = round_weight(r.weight * factor) / factor - r.weight
    # The Gram matrix is twice the mean over the rows.
    return float(_quadratic(error_of_weight, r.gram.hessian[0]).sum(dtype=torch.float64)) * r.gram.rows / 2
