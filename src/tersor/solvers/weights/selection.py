"""Which weights stay: the highest losses, in each layer or in all, anywhere or in a pattern."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tersor.errors import RecipeError

MOST = 0.99
"""The largest share of one layer that goes where all layers share one threshold."""

Masks = dict[str, Tensor]


def kept(
    losses: Mapping[str, Tensor], share: float, *, together: bool, gone: Mapping[str, Tensor] | None = None,
    most: float = MOST,
) -> Masks:
    """Bool masks of what stays, if the share of the lowest losses goes.

    Args:
        losses: of every weight, by layer; among equal ones the first go.
        share: of all weights together, or of each layer.
        together: whether one threshold chooses among all layers, none of which then loses more than ``most``.
        gone: by layer, True for weights that go first.

    Raises:
        RecipeError: nothing would be left of a layer, or so large a share cannot go together.

    >>> kept({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([2.0, 3.0])}, 0.5, together=True, most=0.5)
    {'a': tensor([False,  True]), 'b': tensor([False,  True])}
    """
    found = {name: _ranked(loss, None if gone is None else gone.get(name)) for name, loss in losses.items()}
    if not together:
        check_share({name: loss.numel() for name, loss in losses.items()}, share, together=False)
        return {n: _without_lowest(v, round(share * v.numel())).reshape(losses[n].shape) for n, v in found.items()}
    sizes = {name: value.numel() for name, value in found.items()}
    check_share(sizes, share, together=True, most=most)
    for value in found.values():
        # The highest of each layer are out of reach.
        highest = value.argsort(descending=True, stable=True)[: _floor(value.numel(), most)]
        value[highest[value[highest] > -math.inf]] = math.inf
    mask = _without_lowest(torch.cat(list(found.values())), round(share * sum(sizes.values())))
    parts = mask.split(list(sizes.values()))
    return {name: part.reshape(losses[name].shape) for name, part in zip(found, parts, strict=True)}


def check_share(sizes: Mapping[str, int], share: float, *, together: bool, most: float = MOST) -> None:
    """Refuse a share that leaves nothing of a layer.

    Raises:
        RecipeError: naming the layer, or the share that can go.
    """
    if together:
        able = sum(size - _floor(size, most) for size in sizes.values())
        if round(share * sum(sizes.values())) > able:
            raise RecipeError(
                f"{100 * share:g}% of the weights cannot go, since no layer may lose more than {100 * most:g}% of its "
                f"own and none its last: ask for at most {100 * able / sum(sizes.values()):.4g}%"
            )
        return
    for name, size in sizes.items():
        if round(share * size) >= size:
            raise RecipeError(
                f"{100 * share:g}% of the {size} weights of {name} leaves none: ask for less, or leave the layer out "
                "by `keep`"
            )


def kept_of_each(
    losses: Mapping[str, Tensor], pattern: tuple[int, int], inputs: Mapping[str, int],
    gone: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Bool masks that keep the n highest losses of every m neighbouring inputs.

    Args:
        pattern: (n, m).
        inputs: by layer, the dimension of the weight that holds the inputs.
        gone: by layer, True for weights that go first.

    Raises:
        RecipeError: m does not divide the inputs of a layer.

    >>> kept_of_each({"fc": torch.tensor([[1.0, 2.0, 4.0, 3.0]])}, (1, 2), {"fc": 1})["fc"].tolist()
    [[False, True, True, False]]
    """
    found = {}
    for name, loss in losses.items():
        check_pattern(name, loss.shape, pattern, inputs[name])
        ranked = _ranked(loss, None if gone is None else gone.get(name)).reshape(loss.shape)
        turned = ranked.movedim(inputs[name], -1)
        parts = turned.reshape(-1, pattern[1])
        highest = parts.argsort(dim=1, descending=True, stable=True)[:, : pattern[0]]
        mask = torch.zeros_like(parts, dtype=torch.bool).scatter_(1, highest, True)
        found[name] = mask.reshape(turned.shape).movedim(-1, inputs[name]).contiguous()
    return found


def check_pattern(name: str, shape: torch.Size, pattern: tuple[int, int], inputs: int) -> None:
    """Raise RecipeError, naming the layer, if m does not divide its inputs."""
    if shape[inputs] % pattern[1]:
        raise RecipeError(
            f"{name}: {shape[inputs]} inputs are no multiple of {pattern[1]}, which {pattern[0]}:{pattern[1]} needs; "
            f"leave this layer out: `keep: [{name}]`"
        )


def regrown(keep: Tensor, weight: Tensor, gradient: Tensor, share: float) -> Tensor:
    """The mask with the smallest kept weights exchanged for the missing ones of the largest gradients (RigL).

    Those that were just dropped may come back (arXiv 1911.11134). As many weights stay as before.

    Args:
        share: of the kept weights that is exchanged.

    >>> mask, zeros = torch.tensor([True, True, False]), torch.tensor([0.0, 0.0, 1.0])
    >>> regrown(mask, torch.tensor([5.0, 0.1, 0.0]), zeros, 0.5).tolist()
    [True, False, True]
    """
    flat = keep.reshape(-1)
    count = min(round(share * int(flat.sum())), int((~flat).sum()))
    if not count:
        return keep.clone()
    magnitude = weight.detach().abs().reshape(-1).masked_fill(~flat, math.inf)
    left = flat.clone()
    left[magnitude.argsort(stable=True)[:count]] = False
    wanted = gradient.detach().abs().reshape(-1).masked_fill(left, -math.inf)
    left[wanted.argsort(descending=True, stable=True)[:count]] = True
    return left.reshape(keep.shape)


def _floor(size: int, most: float) -> int:
    """How many weights of a layer stay at least."""
    return max(1, math.ceil((1 - most) * size - 1e-9))


def _ranked(loss: Tensor, gone: Tensor | None) -> Tensor:
    flat = loss.detach().reshape(-1).clone()
    return flat if gone is None else flat.masked_fill_(gone.reshape(-1), -math.inf)


def _without_lowest(values: Tensor, count: int) -> Tensor:
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[values.argsort(stable=True)[:count]] = False
    return mask
