"""What a step of a recipe is, what it needs of its subject and host, and which orders of steps have a meaning."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from tersor.task import Task

# ``float``: edits the float model, so it stands before the step that quantizes. ``quantize``: places quantizers, once
# in a recipe. ``any``: before or behind it.
Phase = Literal["float", "quantize", "any"]


@runtime_checkable
class Subject(Protocol):
    """What a step takes and returns: a model, and the host that works on it."""

    @property
    def host(self) -> "Host":
        """How the model is addressed: as a graph, as a folder, or as modules."""
        ...


class Step(BaseModel):
    """A step: a frozen value whose fields are its options, in a file of this folder, with an entry in ``STEPS``.

    ``name`` is its key there, by which recipes name it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    phase: ClassVar[Phase]

    @abstractmethod
    def __call__(self, subject: Any, task: Task | None, stages: Any) -> Any:
        """The subject as it is after the step; the one given is not changed.

        Args:
            subject: a ``tersor.pipeline.subject.Subject``.
            task: what a graph calibrates on; None where the host brings its own data, or calibrates nothing.
            stages: the progress to report to.
        """


@runtime_checkable
class Host(Protocol):
    """One way to address a network, which carries out the steps that its ``Capabilities`` declare."""

    @property
    def name(self) -> str:
        """As errors print it."""
        ...

    def quantize(self, step: Any, subject: Any, task: Task | None, stages: Any) -> Any:
        """The subject with the ``quantize`` step done."""
        ...


def check_order(steps: Sequence[Step]) -> None:
    """Refuse an order of steps that has no meaning.

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
