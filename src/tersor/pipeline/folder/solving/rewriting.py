"""Rewrites of a block before its weights are solved: AWQ's scales, and rotation of the residual stream."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import RewriteError
from tersor.network.blocks import rotate
from tersor.network.blocks.awq import awq_scales
from tersor.network.blocks.chain import Blocks
from tersor.network.blocks.scale_transfers import apply, scale_transfers
from tersor.numerics import QuantSpec
from tersor.numerics.hadamard import Rotation
from tersor.words import said

UNTIED = said("head and embedding shared their weight; after the rotation each has its own")
Calls = Callable[[], Iterator[tuple[tuple, dict]]]
"""The arguments of a block, in batches."""


@torch.no_grad()
def scale_block(block: nn.Module, specs: Mapping[str, QuantSpec], calls: Calls) -> list[str]:
    """Apply AWQ's scales to a block, in place; returns a description of each.

    Args:
        specs: the specs that the block's weights will be quantized to, by name; channels whose readers differ in spec,
            or include one in float, are not scaled.
    """
    first = next(calls())
    applied = []
    by_spec: dict[QuantSpec, list] = {}
    for transfer in scale_transfers(block, *first).found:
        reader_specs = {specs.get(t.name) for t in transfer.readers}
        if len(reader_specs) == 1 and (spec := reader_specs.pop()) is not None:
            by_spec.setdefault(spec, []).append(transfer)
    for spec, members in by_spec.items():
        for scaling in awq_scales(block, members, calls(), spec):
            if scaling.error < scaling.unscaled:
                apply(block, scaling.transfer, scaling.scale, first)
                applied.append(f"{scaling.transfer}: alpha {scaling.alpha:.2f}")
    return applied


@torch.no_grad()
def rotate_block(block: nn.Module, rotation: Rotation, calls: Calls) -> None:
    """Rotate a block's residual stream, in place."""
    first = next(calls())
    rotate.rotate_block(block, rotate.rotation_plan(block, *first), rotation, first)


@torch.no_grad()
def rotate_ends(model: nn.Module, blocks: Blocks, rotation: Rotation) -> dict[str, Tensor]:
    """Rotate embedding, final norm and head in place; returns the head by name if it was tied to the embedding.

    Raises:
        RewriteError: as in ``ends``, or the norm is not an RMSNorm.
    """
    embedding, head, norm = ends(model, blocks, rotation.size)
    tied = rotate.rotate_ends(embedding, head, norm, rotation)
    name = next(n for n, m in model.named_modules() if m is head)
    return {f"{name}.weight": head.get_parameter("weight").detach()} if tied else {}


def ends(model: nn.Module, blocks: Blocks, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The embedding, the head and the final norm of a residual stream of that width.

    Raises:
        RewriteError: there is no head, or not exactly one final norm.
    """
    embedding, head = (getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output"))
    outside = (m for name, m in model.named_modules() if not name.startswith(blocks.path + "."))
    norms = [m for m in outside if [p.shape for p in m.parameters(recurse=False)] == [(width,)]]
    if embedding is None or head is None or len(norms) != 1:
        raise RewriteError(
            f"{type(model).__name__} has {len(norms)} norms without a bias outside its blocks (no LayerNorm) and "
            f"{'a' if head else 'no'} head: its residual stream cannot be rotated; omit `rotate`"
        )
    return embedding, head, norms[0]


def block_calls(hiddens: Callable[[], Iterator[Tensor]], arguments: list[tuple[tuple, dict[str, Any]]]) -> Calls:
    """The arguments in the form that ``scale_block`` expects."""

    def calls() -> Iterator[tuple[tuple, dict]]:
        for hidden, (args, kwargs) in zip(hiddens(), arguments, strict=True):
            yield (hidden, *args), kwargs

    return calls
