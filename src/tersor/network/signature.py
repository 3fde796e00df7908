"""The call signature of a captured network: that of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tersor.errors import CaptureError, TaskError
from tersor.network.structure import Form, Structure


@dataclass(frozen=True, eq=False)
class Signature:
    """The arguments of a model, as given by the example, and its results.

    Args:
        parameters: the names of the arguments; those of ``*args`` have the names ``0``, ``1``, …
        arguments: the structure of the example's arguments, a tuple in the order of ``parameters``.
        outputs: the structure of the results.

    >>> import torch
    >>> pair, _ = Structure.of((torch.zeros(1), torch.zeros(1)))
    >>> named, _ = Structure.of({"sum": torch.zeros(1)})
    >>> signature = Signature(("x", "y"), pair, named)
    >>> signature.flat((1 * torch.ones(1),), {"y": torch.zeros(1)})
    (tensor([1.]), tensor([0.]))
    >>> signature.build(("a tensor",))
    {'sum': 'a tensor'}
    """

    parameters: tuple[str, ...]
    arguments: Structure
    outputs: Structure

    def flat(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The tensors of a call, in the network's order; arrays become tensors.

        Arguments are given by position or by name. Just the tensors, in order, are accepted too.

        Raises:
            TaskError: too few, too many or misnamed arguments, or a constant that differs from the example's.
        """
        alone = [a for a in args if isinstance(a, Tensor)]
        if not kwargs and len(alone) == len(args) == self.arguments.count:
            return tuple(alone)
        given = self._bound(args, kwargs)
        wanted, tensors = self.arguments.leaves(), dict[int, Tensor]()
        for position, name in enumerate(self.parameters):
            mine = {path[1:]: form for path, form in wanted.items() if path[0] == position}
            if name not in given:
                if any("tensor" in form for form in mine.values()):
                    raise TaskError(f"the argument {name} is missing: {self}")
                continue
            found, values = self._parts(name, given[name])
            if found.leaves().keys() != mine.keys():
                whole = isinstance(given[name], (tuple, list)) and any(path == () for path in mine)
                remedy = "; a whole batch is passed as predict(*batch)" if whole else ""
                raise TaskError(f"the argument {name} has another form than in the example: {self}{remedy}")
            for path, form in found.leaves().items():
                _check_leaf(name, form, mine[path])
                if "tensor" in form:
                    tensors[mine[path]["tensor"]] = values[form["tensor"]]
        return tuple(tensors[k] for k in range(self.arguments.count))

    def build(self, tensors: Sequence[Any]) -> Any:
        """The results in the model's structure."""
        return self.outputs.build(tensors)

    def to_json(self) -> dict[str, Any] | None:
        """The entry in a manifest, or None if a constant cannot be written as JSON."""
        arguments, outputs = self.arguments.to_json(), self.outputs.to_json()
        if arguments is None or outputs is None:
            return None
        return {"parameters": list(self.parameters), "arguments": arguments, "outputs": outputs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Signature":
        """The signature from the result of ``to_json``.

        Raises:
            ValueError: it is not a signature.
        """
        forms: list[Form] = [data["arguments"], data["outputs"]]
        return cls(tuple(map(str, data["parameters"])), *map(Structure.from_json, forms))

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self.parameters):
            raise TaskError(f"{len(args)} arguments were given, but {self}")
        given = dict(zip(self.parameters, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise TaskError(f"the argument {name} was given twice, by position and by name")
            if name not in self.parameters:
                raise TaskError(f"the argument {name} is not one of the example's: {self}")
            given[name] = value
        return given

    def _parts(self, name: str, value: Any) -> tuple[Structure, list[Tensor]]:
        try:
            return Structure.of(value, once=False)
        except CaptureError as error:
            raise TaskError(f"the argument {name} has another form than in the example ({error}): {self}") from error

    def __str__(self) -> str:
        """As shown in errors."""
        count, takes = self.arguments.count, ", ".join(self.parameters)
        return f"the network takes {takes} ({count} tensor{'s' * (count != 1)}), as in the task's example"


def _check_leaf(name: str, found: Form, wanted: Form) -> None:
    if ("tensor" in found) != ("tensor" in wanted):
        takes = "a tensor" if "tensor" in wanted else f"the constant {wanted['constant']!r}"
        raise TaskError(f"the argument {name} must be {takes}, as in the task's example")
    if "constant" in found and found["constant"] != wanted["constant"]:
        raise TaskError(
            f"the argument {name} is {found['constant']!r}, but the network was captured with "
            f"{wanted['constant']!r}, which is constant in it: compress again with this value in the example"
        )
