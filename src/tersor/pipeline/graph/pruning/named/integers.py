"""Integers of a model's own modules that were equal to a size that pruning changed."""

from collections.abc import Collection
from typing import Any

from torch import nn

Changes = dict[str, dict[int, set[int]]]
"""For each module, by name, the sizes of tensors in it before, and what became of each: one size, or several."""
Key = tuple[type[nn.Module], str]
"""An attribute of all modules of a class, which mean the same by it."""


def scopes(path: str) -> list[str]:
    """The module, and those that it lies in.

    >>> scopes("a.b")
    ['a.b', 'a', '']
    """
    parts = path.split(".")
    return [*(".".join(parts[:k]) for k in range(len(parts), 0, -1)), *([""] if path else [])]


def candidates(model: nn.Module, changes: Changes) -> tuple[set[Key], list[Key]]:
    """Attributes that are equal to a size that changed.

    Returns:
        Those whose size became one other everywhere in the module; and all of them, in the order in which to doubt.
    """
    certain, found = set[Key](), list[Key]()
    for name, module in model.named_modules():
        sizes = changes.get(name, {})
        for attribute, value in _own(module):
            values = value if isinstance(value, list | tuple) else [value]
            after = [sizes[v] for v in values if v in sizes and sizes[v] != {v}]
            if not after:
                continue
            key = type(module), attribute
            if key not in found:
                found.append(key)
            if all(len(a) == 1 for a in after):
                certain.add(key)
    return certain, sorted(found, key=lambda key: key in certain)[:12]


def set_integers(model: nn.Module, changes: Changes, keys: Collection[Key]) -> None:
    """Set these attributes to the new sizes, and all others to what they were."""
    for name, module in model.named_modules():
        before = module.__dict__.setdefault("_before_narrowing", dict(_own(module))) if _is_own(module) else {}
        sizes = {old: min(new - {old}) for old, new in changes.get(name, {}).items() if new - {old}}
        for attribute, value in before.items():
            new = value
            if (type(module), attribute) in keys:
                several = isinstance(value, list | tuple)
                new = type(value)(sizes.get(v, v) for v in value) if several else sizes.get(value, value)
            setattr(module, attribute, new)


def forget(model: nn.Module) -> None:
    """Leave no trace in the model."""
    for module in model.modules():
        module.__dict__.pop("_before_narrowing", None)


def _is_own(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.nn.")


def _own(module: nn.Module) -> list[tuple[str, Any]]:
    """Integers of a module that is not torch's, and lists of them."""
    if not _is_own(module):
        return []
    return [
        (attribute, value)
        for attribute, value in vars(module).items()
        if not attribute.startswith("_")
        and (type(value) is int or (isinstance(value, list | tuple) and value and all(type(v) is int for v in value)))
    ]
