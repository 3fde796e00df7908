"""What a report tells of the step `prune` of a folder: how wide and deep the model was, and is."""

from typing import Annotated

from pydantic import Field

from tersor.measure.parts.base import ReportPart
from tersor.measure.parts.pruning import Count, count_text
from tersor.words import _


class Number(ReportPart):
    """A number of config.json: what it counts in words, how many there were, and are."""

    key: str
    before: Count
    after: Count


class FolderPruning(ReportPart):
    """One step `prune` of a folder.

    `gone` are the layers that went, as the folder numbered them before. `errors` has a number for each block that is
    left: the power of what its output on the calibration text differs by from the dense model's, relative to that; it
    includes what earlier blocks got wrong. `notes` are sentences.
    """

    target: str
    parameters_before: Count
    parameters_after: Count
    numbers: tuple[Number, ...] = ()
    gone: tuple[str, ...] = ()
    errors: tuple[Annotated[float, Field(ge=0)], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[int, int]:
        """How many there were, and are."""
        return self.parameters_before, self.parameters_after


def folder_summary(pruning: FolderPruning) -> str:
    """What went, in a sentence without capital and stop.

    >>> folder_summary(FolderPruning(target="25% mlp", parameters_before=2000, parameters_after=1700,
    ...                numbers=(Number(key="intermediate_size", before=64, after=48),)))
    'pruned: 2 k → 1.7 k parameters; intermediate_size 64 → 48'
    """
    parameters = f"{count_text(pruning.parameters_before)} → {count_text(pruning.parameters_after)}"
    found = [_("pruned: {parameters} parameters", parameters=parameters)]
    found += [f"{n.key} {n.before} → {n.after}" for n in pruning.numbers]
    if pruning.gone:
        found.append(_("without {layers}", layers=", ".join(pruning.gone)))
    return _("; ").join(found)
