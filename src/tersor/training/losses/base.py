"""What a distillation loss reads, and what all losses share: checks of the arguments, their precision, dimensions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tersor.errors import RecipeError, TaskError

Layers = str | tuple[str | tuple[str, str], ...]
"""Layers to compare: ``auto``, a name or a pattern for both networks, or several; a pair names the teacher's second."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one network computed for a batch.

    Args:
        output: what it returned: a tensor, or a structure of tensors.
        features: what its layers returned, under keys that student and teacher share.
    """

    output: Any = None
    features: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Loss(Protocol):
    """A distillation loss: a frozen dataclass of its options, callable.

    Attributes:
        name: its name in the table.
        weight: the factor of the loss in the sum of all losses.
        share: whether the loss replaces the task's own: their factors are then ``weight`` and ``1 - weight``.
    """

    name: ClassVar[str]
    share: ClassVar[bool]

    @property
    def weight(self) -> float: ...

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """The loss, a scalar of at least float32 that is differentiable in what the student computed."""
        ...

    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Refuse what cannot be compared, with both shapes."""
        ...


class OutputLoss:
    """Compares what the networks return, by ``of`` of each floating tensor; several are added."""

    name: ClassVar[str]
    share: ClassVar[bool] = True
    weight: float

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """The loss; ``target`` holds the labels of the batch, for losses that read them.

        Raises:
            TaskError: the outputs are of different shapes, or unsuitable for this loss.
        """
        self.check(student, teacher)
        pairs = zip(floats(student.output), floats(teacher.output), strict=True)
        return _summed((s, t, partial(self.of, target=target)) for s, t in pairs)

    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Refuse outputs that cannot be compared.

        Raises:
            TaskError: with both shapes.
        """
        ours, theirs = ([list(t.shape) for t in floats(o.output)] for o in (student, teacher))
        if ours != theirs:
            raise TaskError(
                f"{self.name}: the student returns {_shown(ours)} and the teacher {_shown(theirs)}: give a teacher "
                "with the student's outputs, or a loss of features, such as hints"
            )
        if not ours:
            raise TaskError(f"{self.name}: the networks return no floating-point tensor that could be compared")
        for shape in ours:
            if why := self.refusal(shape):
                raise TaskError(f"{self.name}: an output {shape} {why}")

    def refusal(self, shape: Sequence[int]) -> str:
        """Why outputs of that shape are unsuitable, and what to do; empty if they are suitable."""
        return ""

    def of(self, student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        """The loss of one tensor."""
        raise NotImplementedError


class FeatureLoss:
    """Compares what pairs of layers return, by ``of`` of each pair; pairs are added.

    Features are [batch, width], [batch, length, width] or, of pictures, [batch, width, rows, columns].
    """

    name: ClassVar[str]
    share: ClassVar[bool] = False
    reads: ClassVar[Literal["features", "attention"]] = "features"
    weight: float
    layers: Layers

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("`layers` names no layer: give auto, a name, a pattern or pairs of them")

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """The loss; ``target`` is not read.

        Raises:
            RecipeError: the features of a pair do not fit.
        """
        self.check(student, teacher)
        return _summed((s, teacher.features[name], self.of) for name, s in student.features.items())

    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Refuse features that cannot be compared.

        Raises:
            RecipeError: with the layers and both shapes.
        """
        if not student.features or student.features.keys() != teacher.features.keys():
            ours, theirs = (", ".join(o.features) or "none" for o in (student, teacher))
            raise RecipeError(f"{self.name} compares pairs of layers, and was given {ours} and {theirs}")
        for name, s in student.features.items():
            ours, theirs = s.shape, teacher.features[name].shape
            why = "the samples differ in number" if ours[0] != theirs[0] else self.refusal(ours, theirs)
            if why:
                raise RecipeError(f"{self.name}, {name}: the student's {[*ours]} and the teacher's {[*theirs]}: {why}")

    def refusal(self, student: Sequence[int], teacher: Sequence[int]) -> str:
        """Why features of these shapes do not fit, and what to do; empty if they do."""
        return ""

    def projection(self, student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:
        """A module to train with the student, that gives its features the teacher's width; None if none is needed."""
        return None

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair."""
        raise NotImplementedError


def floats(output: Any) -> list[Tensor]:
    """The floating-point tensors of what a network returned; of a structure with ``logits``, these alone.

    >>> [list(t.shape) for t in floats({"logits": torch.zeros(2, 3), "loss": torch.zeros(())})]
    [[2, 3]]
    >>> [list(t.shape) for t in floats((torch.zeros(2, 4), None, [torch.zeros(2, 1), torch.tensor([1])]))]
    [[2, 4], [2, 1]]
    """
    logits = named_logits(output)
    return list(_floats(output if logits is None else logits))


def named_logits(output: Any) -> Any:
    """What a structure holds as ``logits``, or None."""
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    if is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _floats(part)


def _summed(parts: Iterable[tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]]) -> Tensor:
    """The sum of the losses of (student's tensor, teacher's tensor, loss).

    They are computed in float32, or float64 if a tensor is, and without autocast: differences of bf16 products would be
    noise.
    """
    losses = []
    for student, teacher, of in parts:
        kind = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        with torch.autocast(student.device.type, enabled=False):
            losses.append(of(student.to(kind), teacher.detach().to(kind)))
    return torch.stack(losses).sum()


def _shown(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str([*shape]) for shape in shapes) or "no floating-point tensor"
