"""Which layers of student and teacher are compared: by name, by pattern, or by their place in the networks.

- A name, or a pattern in which ``*`` stands for any text without dots, means the same layers in both networks:
  ``layer*`` is ``layer1``, ``layer2`` …, and nothing inside them.
- A pair of them names the teacher's layers second: ``[blocks.*, encoder.layer.*]`` pairs equal texts of ``*``.
- ``auto`` goes by place. Transformers: their blocks, evenly spaced in the deeper network, the last with the last
  (arXiv 1909.10351). Convolutional networks: the ends of stages, which are the last features of each picture size that
  both have; a student that has the teacher's layer of that name and size is compared at it.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tersor.errors import RecipeError
from tersor.tables import nearest
from tersor.training.losses.base import Layers
from tersor.training.losses.features import attention_of, evaluating, feature_of, layer_names, run, unwrapped

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Layer:
    """A layer that returned something.

    Args:
        name: its name.
        shape: of its first floating tensor.
        size: the number of modules or operators that it consists of.
    """

    name: str
    shape: tuple[int, ...]
    size: int


def paired(
    layers: Layers, reads: Literal["features", "attention"], student: nn.Module, teacher: nn.Module, example: Any
) -> Pairs:
    """The pairs (student's layer, teacher's layer).

    Args:
        layers: the rule, see this file's text.
        reads: what ``auto`` looks for: features, or maps of attention.
        example: the arguments of one call, for ``auto``, which runs both networks once in eval mode.

    Raises:
        RecipeError: a name or pattern without a layer or without a counterpart; layers that ``auto`` does not find.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3))
    >>> import torch
    >>> paired(("0", ("1", "3")), "features", net, net, ())
    [('0', '0'), ('1', '3')]
    >>> paired("auto", "features", net, net, (torch.zeros(1, 1, 10, 10),))
    [('1', '1'), ('2', '2'), ('3', '3')]
    """
    if layers == "auto":
        ours, theirs = (called(module, example, reads) for module in (student, teacher))
        return _by_place(ours, theirs, reads)
    rules = [layers] if isinstance(layers, str) else layers
    ours, theirs = layer_names(student), layer_names(teacher)
    patterns = ((rule, rule) if isinstance(rule, str) else rule for rule in rules)
    return list(dict.fromkeys(pair for both in patterns for pair in _matched(*both, ours, theirs)))


def _matched(left: str, right: str, ours: Collection[str], theirs: Collection[str]) -> Pairs:
    found = []
    for who, pattern, names in (("student", left, ours), ("teacher", right, theirs)):
        expression = re.compile("([^.]*)".join(map(re.escape, pattern.split("*"))))
        found.append({m.groups(): m.string for m in map(expression.fullmatch, names) if m})
        if not found[-1]:
            norm = "; behind a layer with a BatchNorm, name the BatchNorm" if pattern in theirs else ""
            raise RecipeError(f"`layers`: no layer of the {who} is called {pattern!r}{nearest(pattern, names)}{norm}")
    if alone := found[0].keys() ^ found[1].keys():
        lonely = [side[key] for side in found for key in side if key in alone]
        raise RecipeError(
            f"`layers`: {left!r} and {right!r} match layers without a counterpart: {', '.join(lonely[:5])}; name pairs"
        )
    return [(name, found[1][key]) for key, name in found[0].items()]


def called(module: nn.Module, example: Any, reads: Literal["features", "attention"]) -> list[Layer]:
    """The layers that return features, or maps of attention, in the order in which they end."""
    module, names = unwrapped(module), list(layer_names(module))
    sizes = defaultdict[str, int](int)
    for name in names:
        parts = name.split(".")
        for k in range(1, len(parts) + 1):
            sizes[".".join(parts[:k])] += 1
    if hasattr(module, "tap"):
        taps: dict[str, Any] = dict(module.taps())  # type: ignore[operator]
        found = [(Layer(name, tuple(taps[at]), sizes[name]), name == at) for name, at in layer_names(module).items()]
        if reads == "attention":
            operators = [at for at, operator in found if operator and len(at.shape) == 4]
            return [at for at in operators if at.name.rpartition(".")[2].startswith("softmax")]
        return [at for at, _ in found if len(at.shape) > 1]
    ended, seen = dict[str, Layer](), list[Tensor]()

    def record(name: str, result: Any) -> None:
        value = attention_of(result) if reads == "attention" else feature_of(result)
        if value is not None and (reads == "features" or _is_new_map(value, seen)):
            ended.pop(name, None)  # the last call counts
            ended[name] = Layer(name, tuple(value.shape), sizes[name])

    hooks = [
        m.register_forward_hook(lambda _, __, result, name=name: record(name, result))
        for name, m in module.named_modules()
        if name
    ]
    try:
        with evaluating(module):
            run(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(ended.values())


def _is_new_map(value: Tensor, seen: list[Tensor]) -> bool:
    """Whether the values are probabilities, and not what an inner layer already returned."""
    new = all(value is not other for other in seen)
    seen.append(value)
    return new and bool((value >= 0).all()) and bool((value.sum(-1) - 1).abs().max() < 1e-2)


def _by_place(ours: Sequence[Layer], theirs: Sequence[Layer], reads: Literal["features", "attention"]) -> Pairs:
    if reads == "attention":
        left, right = list(ours), list(theirs)
    else:
        left, right = _blocks(ours), _blocks(theirs)
    if left and right:
        count = min(len(left), len(right))
        return [tuple(side[len(side) * (k + 1) // count - 1].name for side in (left, right)) for k in range(count)]  # type: ignore[misc]
    if reads == "attention":
        raise RecipeError(
            "`layers: auto` finds no maps of attention in the networks: load them with attn_implementation=\"eager\", "
            "which returns them, or name the layers"
        )
    stages, counterparts = _stages(ours), _stages(theirs)
    known = {(at.name, at.shape[2:]) for at in ours}
    if shared := [size for size in stages if size in counterparts]:
        ends = [(stages[size], counterparts[size], size) for size in shared]
        return [(its if (its, size) in known else own, its) for own, its, size in ends]
    raise RecipeError(
        "`layers: auto` finds neither blocks of Transformers nor features of equal picture sizes in both networks "
        f"(student: {_told(stages)}; teacher: {_told(counterparts)}): name the layers in pairs"
    )


def _blocks(layers: Sequence[Layer]) -> list[Layer]:
    """The blocks of a Transformer: the numbered layers of sequences that hold most of the network; else none."""
    lists = defaultdict[str, list[Layer]](list)
    for at in layers:
        path, _, number = at.name.rpartition(".")
        if number.isdecimal() and len(at.shape) == 3:
            lists[path].append(at)
    found = max(lists.values(), key=_size, default=[])
    whole = sum(at.size for at in layers if "." not in at.name)
    return found if 2 * _size(found) > whole else []


def _size(layers: Sequence[Layer]) -> int:
    return sum(at.size for at in layers)


def _stages(layers: Sequence[Layer]) -> dict[tuple[int, ...], str]:
    """The end of each stage, by picture size: the last layer of that size, not counting parts of blocks.

    A part of the next stage's first block may still have the size of this one, so layers of less than half the size of
    the largest do not count.
    """
    sizes = defaultdict[tuple[int, ...], list[Layer]](list)
    for at in layers:
        if len(at.shape) > 3 and max(at.shape[2:]) > 1:
            sizes[at.shape[2:]].append(at)
    whole = {size: max(at.size for at in of) for size, of in sizes.items()}
    return {size: next(at.name for at in reversed(of) if 2 * at.size >= whole[size]) for size, of in sizes.items()}


def _told(stages: dict[tuple[int, ...], str]) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, size))}" for size, name in stages.items()) or "no pictures"
