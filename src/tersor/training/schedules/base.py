"""The protocol of schedules."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Schedule(Protocol):
    """An entry of SCHEDULES: a frozen dataclass whose fields are its options.

    It is a pure function of how far training is, so that a resumed training needs no state of it: every call sets
    ``share`` and ``bits`` of every quantizer.
    """

    @property
    def end(self) -> float:
        """The share of all steps after which everything is as it is deployed, at the latest."""
        ...

    def __call__(self, student: nn.Module, progress: float) -> None:
        """Set the student's quantizers for the next step.

        Args:
            student: the network that trains.
            progress: the share of all steps that is done, from 0 to 1; at 1 everything is as it is deployed.
        """
        ...
