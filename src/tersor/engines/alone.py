"""The saved files alone: opened by the engine's own runtime with its defaults, as any other program would."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tersor.engines.base import Engine, Runner
from tersor.engines.numbers import parts_of
from tersor.network.explain import summary

# A relative difference beyond which the files alone differ from what was measured: a few values rounded differently.
SAME = 0.002
# The distance of outputs that have nothing in common, since JSON has no infinity.
UNLIKE = 1e9
# Magnitude above which a number is a mask.
_MASK = 1e30


@dataclass(frozen=True)
class Alone:
    """The largest relative difference (root mean square) of an output of the files alone from the runner's.

    ``note`` is what the engine knows about its defaults; empty if the files alone compute what was measured.
    """

    difference: float
    note: str = ""

    @property
    def same(self) -> bool:
        """Whether the files alone compute what the runner does."""
        return self.difference <= SAME


def alone(engine: Engine, folder: Path, runner: Runner, inputs: Sequence[Tensor]) -> Alone | None:
    """Compare the files in ``folder`` with the runner that wrote them; None if their runtime is not available here.

    Raises:
        EngineError: the runtime does not open the files.
    """
    plain = engine.plain(folder)
    if plain is None:
        return None
    try:
        theirs, ours = plain(*inputs), runner(*inputs)
    except Exception as error:  # an error of the runtime: the measurements must not be lost
        return Alone(UNLIKE, f"it does not run the files: {summary(error)}")
    pairs = zip(parts_of(theirs), parts_of(ours), strict=True)
    largest = max((_distance(a, b) for a, b in pairs), default=0.0)
    known = largest > SAME and runner.precision == "f32"
    return Alone(largest, engine.plain_note if known else "")


def _distance(a: Tensor, b: Tensor) -> float:
    """The relative distance of all values except masks; ``UNLIKE`` if shapes, masks, infinities or NaN differ."""
    if torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return UNLIKE
    masks = ~b.isfinite() | (b.abs() >= _MASK)
    if not torch.equal(a.masked_fill(b.isnan(), 0.0)[masks], b.masked_fill(b.isnan(), 0.0)[masks]):
        return UNLIKE
    a, b = a[~masks], b[~masks]
    return min(UNLIKE, float((a - b).norm() / b.norm().clamp_min(1e-12)))
