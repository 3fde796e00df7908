"""What is changed in a block before its weights are solved: AWQ's scales, and the rotation of the residual stream."""

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

Calls = Callable[[], Iterator[tuple[tuple, dict]]]
"""The arguments of a block, a batch at a time."""


@torch.no_grad()
def scale_block(block: nn.Module, specs: Mapping[str, QuantSpec], calls: Calls) -> list[str]:
    """ScaleTransfer AWQ's scales into a block, in place; what was scaled, in words.

    Args:
        specs: how the block's weights will be quantized, by their names in it; where readers of one input differ, or
            one of them stays float, its channels are not scaled.
    """
    first = next(calls())
    done = []
    by_spec: dict[QuantSpec, list] = {}
    for transfer in scale_transfers(block, *first).found:
        found = {specs.get(t.name) for t in transfer.readers}
        if len(found) == 1 and (spec := found.pop()) is not None:
            by_spec.setdefault(spec, []).append(transfer)
    for spec, members in by_spec.items():
        for found in awq_scales(block, members, calls(), spec):
            if found.error < found.unscaled:
                apply(block, found.transfer, found.scale, first)
                done.append(f"{found.transfer}: alpha {found.alpha:.2f}")
    return done


@torch.no_grad()
def rotate_block(block: nn.Module, rotation: Rotation, calls: Calls) -> None:
    """Rotate a block's residual stream, in place."""
    first = next(calls())
    rotate.rotate_block(block, rotate.rotation_plan(block, *first), rotation, first)


@torch.no_grad()
def rotate_ends(model: nn.Module, blocks: Blocks, rotation: Rotation) -> dict[str, Tensor]:
    """Rotate embedding, last norm and head, in place; the head, by its name, where it was tied to the embedding.

    Raises:
        RewriteError: as of ``ends``, or the norm is no RMSNorm.
    """
    embedding, head, norm = ends(model, blocks, rotation.size)
    tied = rotate.rotate_ends(embedding, head, norm, rotation)
    name = next(n for n, m in model.named_modules() if m is head)
    return {f"{name}.weight": head.get_parameter("weight").detach()} if tied else {}


def ends(model: nn.Module, blocks: Blocks, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Embedding, head, and the norm in front of it, of a residual stream of that width.

    Raises:
        RewriteError: there is no head, or not one norm in front of it.
    """
    embedding, head = (getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output"))
    outside = (m for name, m in model.named_modules() if not name.startswith(blocks.path + "."))
    norms = [m for m in outside if [p.shape for p in m.parameters(recurse=False)] == [(width,)]]
    if embedding is None or head is None or len(norms) != 1:
        raise RewriteError(
            f"{type(model).__name__} has {len(norms)} norms without a bias outside its blocks (no LayerNorm) and "
            f"{'a' if head else 'no'} head: its residual stream cannot be rotated; leave `rotate` out"
        )
    return embedding, head, norms[0]


def block_calls(hiddens: Callable[[], Iterator[Tensor]], arguments: list[tuple[tuple, dict[str, Any]]]) -> Calls:
    """Arguments as ``scale_block`` takes them."""

    def calls() -> Iterator[tuple[tuple, dict]]:
        for hidden, (args, kwargs) in zip(hiddens(), arguments, strict=True):
            yield (hidden, *args), kwargs

    return calls
