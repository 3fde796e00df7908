"""The structure of a model's arguments and results: nested values with tensors, in memory and as JSON.

A form is a tree of plain values: ``{"tensor": k}`` is the k-th tensor, ``{"constant": value}`` a value that is the
same in every call; containers name their kind. Loading one executes nothing.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import CaptureError

Form = dict[str, Any]
_PLAIN = (bool, int, float, str, type(None))
_SCALARS = (*_PLAIN, torch.dtype, torch.device, complex, bytes)


def tensor_of(array: np.ndarray) -> Tensor:
    """An array as a tensor; it shares the array's memory if that is writable.

    Raises:
        CaptureError: PyTorch has no such dtype.
    """
    try:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.ascontiguousarray(native if native.flags.writeable else native.copy()))
    except (TypeError, ValueError) as error:
        raise CaptureError(f"an array of {array.dtype}, which PyTorch has not") from error


class Record(OrderedDict[str, Any]):
    """An output with named fields of an unknown class: read by key, attribute or position.

    >>> out = Record("Prediction", {"logits": 1, "aux": 2})
    >>> out.logits, out["aux"], out[0], out
    (1, 2, 1, Prediction(logits=1, aux=2))
    """

    def __init__(self, kind: str, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.__dict__["kind"] = kind

    def __getattr__(self, name: str) -> Any:
        """A field by its name."""
        if name in self:
            return OrderedDict.__getitem__(self, name)
        raise AttributeError(f"{self.__dict__.get('kind', 'Record')} has no field {name!r}")

    def __getitem__(self, key: Any) -> Any:
        """A field by its name, or by its position."""
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]

    def __repr__(self) -> str:
        """In the format of a dataclass."""
        return f"{self.__dict__['kind']}({', '.join(f'{k}={v!r}' for k, v in self.items())})"


@dataclass(frozen=True, eq=False)
class Structure:
    """The form of a value, and the number of tensors in it.

    Args:
        form: the tree, of values that JSON can represent.
        count: the number of tensors.
        classes: the classes of named forms, by their qualified names; unknown for a loaded folder.

    >>> found, tensors = Structure.of({"a": torch.zeros(1), "rest": (None, [torch.ones(2)])})
    >>> found.names(), [list(t.shape) for t in tensors]
    (('a', 'rest_1_0'), [[1], [2]])
    >>> found.build(["x", "y"])
    {'a': 'x', 'rest': (None, ['y'])}
    """

    form: Form
    count: int
    classes: Mapping[str, type] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, once: bool = True) -> tuple["Structure", list[Tensor]]:
        """The structure of a value, and its tensors; with ``once`` a tensor that occurs twice is listed once.

        Raises:
            CaptureError: a value that is neither a tensor, a container of tensors, nor a constant.
        """
        tensors: list[Tensor] = []
        classes: dict[str, type] = {}

        def walk(item: Any, path: str) -> Form:
            if isinstance(item, np.ndarray):
                item = tensor_of(item)
            elif isinstance(item, np.generic):
                item = item.item()
            if isinstance(item, Tensor):
                known = next((k for k, t in enumerate(tensors) if once and t is item), None)
                if known is None:
                    tensors.append(item)
                return {"tensor": len(tensors) - 1 if known is None else known}
            if isinstance(item, torch.SymInt) or item is ...:
                raise CaptureError(f"{path} is a size that varies with the input: return a tensor, or leave it out")
            if isinstance(item, _SCALARS):
                return {"constant": item}
            for kind, (takes, parts) in _CONTAINERS.items():
                if takes(item):
                    classes[_named(type(item))] = type(item)
                    found = [[key, walk(part, f"{path}[{key!r}]")] for key, part in parts(item)]
                    return {kind: found, "type": _named(type(item))} if kind == "record" else {kind: found}
            raise CaptureError(
                f"{path} is a {type(item).__name__}, in which Tersor finds no tensors: return tensors, lists, tuples, "
                "dicts, dataclasses, or make it one of them"
            )

        form = walk(value, "the value")
        return cls(form, len(tensors), classes), tensors

    def build(self, tensors: Sequence[Any]) -> Any:
        """The value with these tensors in place of its own."""
        return _build(self.form, tensors, self.classes)

    def names(self, alone: str = "output") -> tuple[str, ...]:
        """A name for every tensor: its keys and positions."""
        paths: dict[int, str] = {}
        for path, form in _leaves(self.form, ()):
            if "tensor" in form:
                words = (alone, *path) if not path or isinstance(path[0], int) else path
                paths.setdefault(form["tensor"], "_".join(map(str, words)))
        names: list[str] = []
        for k in range(self.count):
            name, number = paths[k], 1
            while name in names:
                number += 1
                name = f"{paths[k]}_{number}"
            names.append(name)
        return tuple(names)

    def numbered(self, numbers: Sequence[int]) -> "Structure":
        """The structure whose k-th tensor has the number ``numbers[k]``; equal numbers are one tensor."""

        def walk(form: Form) -> Form:
            if "tensor" in form:
                return {"tensor": numbers[form["tensor"]]}
            return {k: [[key, walk(part)] for key, part in v] if k in _CONTAINERS else v for k, v in form.items()}

        return Structure(walk(self.form), len(set(numbers)), self.classes)

    def leaves(self) -> dict[tuple[Any, ...], Form]:
        """Every tensor and constant, by its keys and positions."""
        return dict(_leaves(self.form, ()))

    def to_json(self) -> Form | None:
        """The form, or None if a constant cannot be written as JSON."""
        leaves = self.leaves().items()
        fine = all(isinstance(part, _PLAIN) for path, form in leaves for part in (*path, form.get("constant")))
        return self.form if fine else None

    @classmethod
    def from_json(cls, form: Form) -> "Structure":
        """The structure from a stored form; nothing is imported or executed.

        Raises:
            ValueError: it is not a form.
        """
        numbers = {f["tensor"] for _, f in _leaves(form, ()) if "tensor" in f}
        if numbers != set(range(len(numbers))):
            raise ValueError(f"tensors {sorted(numbers)} are not numbered from 0")
        return cls(form, len(numbers))


def _is_record(value: Any) -> bool:
    if isinstance(value, type):
        return False
    return dataclasses.is_dataclass(value) or hasattr(type(value), "_fields")


def _fields(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):  # like transformers' outputs, which omit fields that are None
        return [(str(k), v) for k, v in value.items()]
    if hasattr(type(value), "_fields"):
        return [(name, getattr(value, name)) for name in value._fields]
    return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]


# The required type of a kind, and its parts by key.
_CONTAINERS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], Any]]] = {
    "record": (_is_record, _fields),
    "dict": (lambda v: isinstance(v, Mapping), lambda v: v.items()),
    "tuple": (lambda v: isinstance(v, tuple), enumerate),
    "list": (lambda v: isinstance(v, list), enumerate),
}


def _build(form: Form, tensors: Sequence[Any], classes: Mapping[str, type]) -> Any:
    if "tensor" in form:
        return tensors[form["tensor"]]
    if "constant" in form:
        return form["constant"]
    kind = next(k for k in _CONTAINERS if k in form)
    parts = [(key, _build(part, tensors, classes)) for key, part in form[kind]]
    if kind == "record":
        made = classes.get(form["type"])
        if made is None:
            return Record(form["type"].rpartition(".")[2], dict(parts))
        return made(**dict(parts))
    if kind == "dict":
        return dict(parts)
    return (tuple if kind == "tuple" else list)(value for _, value in parts)


def _leaves(form: Form, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Form]]:
    if not isinstance(form, dict):
        raise ValueError(f"{form!r:.40} is no form")
    kind = next((k for k in _CONTAINERS if isinstance(form.get(k), list)), None)
    if kind is not None:
        for key, part in form[kind]:
            yield from _leaves(part, (*path, key))
    elif isinstance(form.get("tensor"), int) or "constant" in form:
        yield path, form
    else:
        raise ValueError(f"{form!r:.40} is no form")


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
