"""QuaRot's rotation of the residual stream, folded into the weights block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import RewriteError
from tersor.network.blocks.operators import View, tensors, watch
from tersor.network.blocks.stream import Reader, Stream
from tersor.network.blocks.unchanged import Call, unchanged
from tersor.numerics.hadamard import Rotation
from tersor.words import said


@dataclass(frozen=True, eq=False)
class RotationPlan:
    """The weights of a block that rotate with its residual stream; blocks of the same structure share one.

    Args:
        size: the width of the stream.
        readers: the weights that read the stream, and through which norm.
        writers: the weights and biases that write to the stream, and their output dimension.
    """

    size: int
    readers: Mapping[str, Reader]
    writers: Mapping[str, int]

    @property
    def norms(self) -> dict[str, View]:
        """The norms' weights, which are folded into the readers."""
        return {r.norm.name: r.norm for r in self.readers.values() if r.norm is not None}


def rotation_plan(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> RotationPlan:
    """Find, from one call, what reads the residual stream (the block's first tensor) and what writes to it.

    Raises:
        RewriteError: a rotation would change the function: there is a LayerNorm, a norm after what is added to the
            stream, or another operator that reads the stream.
    """
    start = next((t for t in tensors((tuple(args), kwargs or {})) if t.is_floating_point() and t.ndim > 1), None)
    if start is None:
        raise RewriteError("the call has no tensor that could be a residual stream: pass the block's own inputs")
    stream = Stream(start)
    stream.finish(watch(block, args, kwargs or {}, stream.see))
    return RotationPlan(stream.size, stream.readers, {n: d for n, d in stream.writers.items() if n in stream.added})


def rotate_block(
    block: nn.Module, plan: RotationPlan, rotation: Rotation, call: Call | None = None, tolerance: float | None = None
) -> None:
    """Rotate a block in place, so that ``block(x·R) = block(x)·R``.

    The norms' weights are multiplied into the readers and become 1; the readers' columns and the writers' rows are
    rotated (Ashkboos et al., QuaRot, arXiv 2404.00456, section 4, stage 1, without its run-time rotations). With
    ``call`` the outputs are compared as in ``apply``.

    Raises:
        RewriteError: the rotation has another size, or the output is not the rotated one; the block is then restored.

    >>> from torch.nn import functional as F
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.up, self.down = nn.RMSNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)
    ...     def forward(self, x):
    ...         return x + self.down(F.silu(self.up(self.norm(x))))
    >>> block, x, rotation = Block(), torch.randn(2, 4), Rotation(4)
    >>> plan, before = rotation_plan(block, (x,)), block(x)
    >>> rotate_block(block, plan, rotation, ((x,), {}))
    >>> torch.allclose(block(rotation(x)), rotation(before), atol=1e-5)
    True
    """
    if rotation.size != plan.size:
        raise RewriteError(
            f"the residual stream has width {plan.size}, the rotation has size {rotation.size}: they must be equal"
        )
    names = dict.fromkeys((*plan.readers, *plan.writers, *plan.norms))
    parameters = {n: block.get_parameter(n) for n in names}
    after = None if call is None else _rotated_call(call, rotation)
    with unchanged(block, parameters, "rotating the residual stream", call, tolerance, after, rotation):
        for name, reader in plan.readers.items():
            _rotate_reader(parameters[name], reader, block, rotation)
        for name, axis in plan.writers.items():
            parameters[name].copy_(rotation(parameters[name].double(), axis))
        for name, norm in plan.norms.items():
            parameters[name].fill_(1.0 - norm.offset)


def rotate_ends(embedding: nn.Module, head: nn.Module, norm: nn.Module, rotation: Rotation) -> tuple[str, ...]:
    """Rotate the layers outside the blocks in place: embedding, final norm and head.

    A head and embedding that share their weight get one each: set ``tie_word_embeddings`` of the model's config to
    False. Returns notes for the report.

    Raises:
        RewriteError: the norm is not an RMSNorm, or the width differs from the rotation's.

    >>> embedding, head, norm = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.RMSNorm(4)
    >>> head.weight, ids = embedding.weight, torch.arange(5)
    >>> before = head(norm(embedding(ids)))
    >>> rotate_ends(embedding, head, norm, Rotation(4))
    ('head and embedding shared their weight; each has its own now',)
    >>> torch.allclose(head(norm(embedding(ids))), before, atol=1e-5)
    True
    """
    table, last = embedding.get_parameter("weight"), head.get_parameter("weight")
    if {table.shape[-1], last.shape[-1]} != {rotation.size}:
        raise RewriteError(
            f"embedding and head have widths {table.shape[-1]} and {last.shape[-1]}, the rotation {rotation.size}: "
            "use a rotation of their width"
        )
    ends = nn.Sequential(norm, head)
    x = torch.ones(2, rotation.size, dtype=table.dtype, device=table.device)
    stream = Stream(x)
    watch(ends, (x,), {}, stream.see)
    reader = stream.readers.get("1.weight")
    if reader is None:
        raise RewriteError("the head's own weight does not read the final norm: not rotated")
    notes = ()
    with torch.no_grad():
        if last is table:
            head.weight = nn.Parameter(table.detach().clone(), requires_grad=table.requires_grad)
            notes = (said("head and embedding shared their weight; each has its own now"),)
        _rotate_reader(head.get_parameter("weight"), reader, ends, rotation)
        table.copy_(rotation(table.double()))
        if reader.norm is not None:
            ends.get_parameter(reader.norm.name).fill_(1.0 - reader.norm.offset)
    return notes


def _rotate_reader(weight: Tensor, reader: Reader, block: nn.Module, rotation: Rotation) -> None:
    columns = weight.double().movedim(reader.axis, -1)
    if reader.norm is not None:
        columns = columns * (block.get_parameter(reader.norm.name).double() + reader.norm.offset)
    weight.copy_(rotation(columns).movedim(-1, reader.axis))


def _rotated_call(call: Call, rotation: Rotation) -> Call:
    """The call with its residual stream, the first floating-point tensor, rotated."""
    args, kwargs = list(call[0]), dict(call[1])
    for place, values in ((args, enumerate(args)), (kwargs, kwargs.items())):
        for key, value in values:
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
                place[key] = rotation(value)  # type: ignore[index, call-overload]
                return args, kwargs
    raise RewriteError("the call has no tensor that could be a residual stream: pass the block's own inputs")
