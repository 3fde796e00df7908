"""Find which weights of a block can transfer a scale to which others, from one call, and apply such scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import RewriteError
from tersor.network.blocks.labels import NONE, UNSEEN, Labels
from tersor.network.blocks.operators import watch
from tersor.network.blocks.unchanged import Call, unchanged


@dataclass(frozen=True, eq=False)
class ScaledAxis:
    """A parameter that a scale transfer scales.

    Args:
        name: the parameter's name in the block.
        channels: int32, broadcastable to the parameter's shape: the element of the scale that applies to each of its
            elements; -1 for none.
        offset: a constant that the block adds to the parameter before use (1 in Gemma's norms).
    """

    name: str
    channels: Tensor
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class ScaleTransfer:
    """Weights and biases that can be divided by a positive scale, and the weights whose columns are multiplied by it.

    ``size`` is the number of elements of the scale: one per scalable channel, fewer than the readers' columns if heads
    are repeated.
    """

    sources: tuple[ScaledAxis, ...]
    readers: tuple[ScaledAxis, ...]
    size: int

    def __str__(self) -> str:
        return f"{self.sources[0].name} -> {', '.join(t.name for t in self.readers)}"


@dataclass(frozen=True)
class ScaleTransfers:
    """The scale transfers of a block in execution order; ``refused``: why each other weight cannot transfer a scale."""

    found: tuple[ScaleTransfer, ...]
    refused: Mapping[str, str]


def scale_transfers(
    block: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> ScaleTransfers:
    """Find the scale transfers of a block, from one recorded call.

    A norm's weight into the linear layers that read it, the value projection into the output projection (through
    attention and repeated heads), the linear half of a gated unit into the next layer, a layer into the next through
    ReLU: whatever the operators allow, channel by channel, without a table of architectures. Fused projections and
    experts in 3-D parameters are covered; an expert that no token of the call reached takes part in scales that all
    experts share, and keeps a scale of 1 otherwise.

    The call runs once, with labels of 4 bytes per element. A short one is enough; it must not contain a key-value
    cache, which each run would extend.

    >>> block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [str(transfer) for transfer in scale_transfers(block, (torch.randn(3, 4),)).found]
    ['0.weight -> 1.weight', '1.weight -> 3.weight']
    >>> scale_transfers(block, (torch.randn(3, 4),)).refused
    {'3.weight': 'it leaves the block'}
    """
    labels = Labels()
    labels.leave(watch(block, args, kwargs or {}, labels.see))
    readers = {n: _fill_unreached(t, labels) for n, t in labels.readers.items()}
    for name, reason in labels.untouchable.items():
        for table in (labels.sources, readers):
            labels.kill(table.get(name), f"{name}: {reason}")
    read = torch.zeros_like(labels.dead, dtype=torch.bool)
    for table in readers.values():
        read[table[table >= 0].long()] = True
    alive = read & (labels.dead == 0)
    transfers: list[ScaleTransfer] = []
    refused = {n: reason for n, reason in labels.untouchable.items() if n not in labels.owners}
    for name, (first, end) in labels.owners.items():
        chosen = alive[first:end]
        if not chosen.any():
            refused[name] = labels.reasons[int(labels.dead[first:end].long().mode().values)]
            continue
        number = torch.full_like(labels.dead, NONE, dtype=torch.int32)
        number[first:end][chosen] = torch.arange(int(chosen.sum()), dtype=torch.int32)
        sources, into = (_axes(t, number, labels.offsets) for t in (labels.sources, readers))
        transfers.append(ScaleTransfer(tuple(sorted(sources, key=lambda t: t.name != name)), into, int(chosen.sum())))
    return ScaleTransfers(tuple(transfers), refused)


def _fill_unreached(table: Tensor, labels: Labels) -> Tensor:
    """Give unreached experts the labels of the others, if those all read the same value."""
    unseen = table == UNSEEN
    if not unseen.any() or table.ndim < 3:
        return torch.where(unseen, NONE, table)
    known = table.amax(0, keepdim=True)
    shared = ((table == known) | unseen).all(0, keepdim=True)
    for name, (first, end) in labels.owners.items():
        if sum(n > 1 for n in labels.sources[name].shape) > 1:  # one channel per expert
            shared &= (known < first) | (known >= end)
    return torch.where(unseen, torch.where(shared, known, NONE), table)


def _axes(tables: Mapping[str, Tensor], number: Tensor, offsets: Mapping[str, float]) -> tuple[ScaledAxis, ...]:
    axes = []
    for name, table in tables.items():
        channels = torch.where(table >= 0, number[table.clamp(min=0).long()], NONE)
        if (channels >= 0).any():
            axes.append(ScaledAxis(name, channels, offsets.get(name, 0.0)))
    return tuple(axes)


def factor(axis: ScaledAxis, scale: Tensor) -> Tensor:
    """The scale broadcastable to a parameter, in float64, with 1 where no channel is scaled."""
    channels = axis.channels.to(scale.device)
    return torch.where(channels >= 0, scale.double()[channels.clamp(min=0).long()], 1.0)


def apply(
    block: nn.Module, transfer: ScaleTransfer, scale: Tensor, call: Call | None = None, tolerance: float | None = None
) -> None:
    """Divide a transfer's sources by ``scale`` and multiply its readers by it, in place.

    With ``call`` (args and kwargs), the block's output is compared before and after: the relative difference of each
    channel over the tokens (relative to the median channel, where that is larger) may be at most ``tolerance``, by
    default 1e-4 in float32 and 16 units in the last place for 16-bit parameters.

    Raises:
        RewriteError: the scale has another size or is not positive, or the output changed; the block is then restored.

    >>> block = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1, bias=False))
    >>> call = (torch.randn(3, 2),), {}
    >>> apply(block, scale_transfers(block, *call).found[0], torch.tensor([2.0, 4.0]), call)
    >>> block[0].weight.tolist()
    [0.5, 0.25]
    """
    if scale.shape != (transfer.size,) or not bool(((scale > 0) & scale.isfinite()).all()):
        raise RewriteError(f"{transfer}: the scale must have {transfer.size} positive elements, not {_describe(scale)}")
    parameters = {t.name: block.get_parameter(t.name) for t in (*transfer.sources, *transfer.readers)}
    with unchanged(block, parameters, str(transfer), call, tolerance):
        for axis in transfer.sources:
            old = parameters[axis.name]
            offset = axis.offset
            old.copy_((old.double() + offset) / factor(axis, scale.to(old.device)) - offset)
        for axis in transfer.readers:
            old = parameters[axis.name]
            old.copy_(old.double() * factor(axis, scale.to(old.device)))


def _describe(scale: Tensor) -> str:
    if scale.ndim != 1:
        return f"of shape {tuple(scale.shape)}"
    return f"{len(scale)} from {scale.min():.3g} to {scale.max():.3g}" if len(scale) else "empty"
