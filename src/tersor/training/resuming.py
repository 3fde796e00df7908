"""What of a training is saved and taken back: its parts, how far it was, and its best epoch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.errors import CheckpointError
from tersor.training import state
from tersor.training.history import Epoch


@dataclass
class Course:
    """How far a training is.

    Args:
        done: steps of the optimizer.
        epochs: the finished ones.
        before: the loss on held-out data before training.
        best: the number, from 1, of the best epoch on held-out data, and its loss.
        notes: for the report.
        finished: whether nothing is left to do.
    """

    done: int
    epochs: list[Epoch]
    before: float | None
    best: tuple[int, float] | None
    notes: list[str]
    finished: bool = False


class Saved:
    """The parts of a training, with what brings them back to an earlier state.

    Args:
        parts: by name; each has ``state_dict`` and ``load_state_dict``.
        folder: where they are written; None: nowhere.
        about: what identifies the training.
        kept: the parts that make the result.
    """

    def __init__(
        self, parts: Mapping[str, Any], folder: Path | None, about: Mapping[str, Any], kept: Collection[str]
    ) -> None:
        self.parts, self.folder, self.about, self.kept = dict(parts), folder, dict(about), kept
        self.best: dict[str, Any] | None = None

    def keep(self) -> None:
        """Remember the parts as they are now, as those of the best epoch."""
        kept = {name: state for name, state in self._states().items() if name in self.kept}
        self.best = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), kept)

    def restore(self) -> None:
        """Bring the parts back to the best epoch."""
        assert self.best is not None
        for name, state_dict in self.best.items():
            self.parts[name].load_state_dict(state_dict)

    def write(self, course: Course) -> None:
        """Write everything as one file.

        Raises:
            CheckpointError: it cannot be written, or a part holds what cannot be saved.
        """
        if self.folder is not None:
            values = {**vars(course), "epochs": [list(vars(e).values()) for e in course.epochs]}
            state.save(self.folder, {"parts": self._states(), "best": self.best, "course": values}, self.about)

    def check(self) -> None:
        """Raise CheckpointError if a part holds what cannot be saved."""
        if self.folder is not None:
            state.check(self._states())

    def read(self) -> Course | None:
        """Take the parts from the file; None if there is none.

        Raises:
            CheckpointError: it is damaged, or of another training.
        """
        found = None if self.folder is None else state.load(self.folder, self.about)
        if found is None:
            return None
        try:
            for name, part in self.parts.items():
                part.load_state_dict(found["parts"][name])
            self.best, values = found["best"], found["course"]
            return Course(**{**values, "epochs": [Epoch(*epoch) for epoch in values["epochs"]]})
        except Exception as error:
            raise CheckpointError(
                f"{self.folder}: the state does not fit this training ({error!s:.300}): give another folder, or remove "
                "it"
            ) from error

    def _states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}
