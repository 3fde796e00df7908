"""The protocol of a recipe's steps, what a step needs from its subject and host, and the valid orders of steps."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from tersor.task import Task

# ``float``: edits the float model, so it comes before the quantization step. ``quantize``: places quantizers, once
# per recipe. ``any``: before or after it.
Phase = Literal["float", "quantize", "any"]


@runtime_checkable
class Subject(Protocol):
    """The input and output of a step: a model, and the host that works on it."""

    @property
    def host(self) -> "Host":
        """How the model is addressed: as a graph, as a folder, or as modules."""
        ...


class Step(BaseModel):
    """A step: a frozen value whose fields are its options, in a file of this folder, with an entry in ``STEPS``.

    ``name`` is its key there, which recipes use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    phase: ClassVar[Phase]

    @abstractmethod
    def __call__(self, subject: Any, task: Task | None, stages: Any) -> Any:
        """The subject after the step; the given one is not changed.

        Args:
            subject: a ``tersor.pipeline.subject.Subject``.
            task: the calibration data of a graph; None if the host has its own data, or calibrates nothing.
            stages: the progress to report to.
        """


@runtime_checkable
class Host(Protocol):
    """One way to address a network, which runs the steps that its ``Capabilities`` declare."""

    @property
    def name(self) -> str:
        """Its name in errors."""
        ...

    def quantize(self, step: Any, subject: Any, task: Task | None, stages: Any) -> Any:
        """The subject with the ``quantize`` step done."""
        ...

    def train(self, step: Any, subject: Any, task: Task | None, stages: Any) -> Any:
        """The subject with a ``train`` step done."""
        ...

    def prune(self, step: Any, subject: Any, task: Task | None, stages: Any) -> Any:
        """The subject with a ``prune`` step done."""
        ...


def check_order(steps: Sequence[Step]) -> None:
    """Reject an order of steps that makes no sense.

    Raises:
        ValueError: naming both steps.
    """
    quantizing: Step | None = None
    for step in steps:
        if quantizing is not None and step.phase == "quantize":
            raise ValueError(
                f"the steps `{quantizing.name}` and `{step.name}` both quantize, and a recipe quantizes once: leave "
                "one of them out"
            )
        if quantizing is not None and step.phase == "float":
            raise ValueError(
                f"the step `{step.name}` edits the float model, so it cannot stand behind `{quantizing.name}`: move it "
                "in front"
            )
        if step.phase == "quantize":
            quantizing = step
