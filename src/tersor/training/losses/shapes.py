"""The dimensions of outputs and features: where their width lies, and which of them can be compared."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def width_of(shape: Sequence[int]) -> int:
    """The number of classes, channels or units: the second dimension of pictures, else the last.

    >>> width_of([8, 10]), width_of([8, 128, 384]), width_of([8, 64, 16, 16])
    (10, 384, 64)
    """
    return shape[1] if len(shape) > 3 else shape[-1]


def width_last(values: Tensor) -> Tensor:
    """Pictures [batch, width, …] with the width moved to the end; other values unchanged."""
    return values.movedim(1, -1) if values.ndim > 3 else values


def pooled(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures averaged to the smaller height and width of the two; other values unchanged."""
    if student.ndim < 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return F.interpolate(student, size, mode="area"), F.interpolate(teacher, size, mode="area")


def projection(student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:
    """A linear map of the width at every position, without bias; None for equal widths or features of other kinds."""
    inputs, outputs = width_of(student), width_of(teacher)
    if inputs == outputs or positions_differ(student, teacher):
        return None
    if len(student) < 4:
        return nn.Linear(inputs, outputs, bias=False)
    return (nn.Conv2d if len(student) == 4 else nn.Conv3d)(inputs, outputs, 1, bias=False)


def positions_differ(student: Sequence[int], teacher: Sequence[int]) -> str:
    """Why positions cannot be compared, or nothing: pictures of other sizes can, for they are pooled."""
    if len(student) != len(teacher) or not 1 < len(student) < 6:
        return "name layers whose features are of one kind: vectors, sequences or pictures"
    if len(student) == 3 and student[1] != teacher[1]:
        return "their lengths differ: name layers before the lengths change"
    return ""


def widths_differ(student: Sequence[int], teacher: Sequence[int]) -> str:
    """Why widths that no projection made equal cannot be compared, or nothing."""
    if width_of(student) == width_of(teacher):
        return ""
    return "their widths differ: set `project: true`, which trains a projection, or name layers of equal widths"


def no_classes(shape: Sequence[int]) -> str:
    """Why an output holds no scores of classes, or nothing."""
    if len(shape) > 1 and width_of(shape) > 1:
        return ""
    return "has one value for each sample, which is no distribution over classes: use mse"
