"""The saved files alone: opened by the engine's own runtime with its defaults, as anyone else opens them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tersor.engines.base import Engine, Runner
from tersor.engines.numbers import parts_of
from tersor.network.explain import summary

# A relative difference beyond which the files alone are not what was measured: a few values rounded the other way.
SAME = 0.002
# The distance of outputs that have nothing in common: JSON has no infinity.
UNLIKE = 1e9
# Magnitudes from which a number is a mask.
_MASK = 1e30


@dataclass(frozen=True)
class Alone:
    """The largest relative difference (root mean square) of an output of the files alone from the runner's.

    ``note`` is what the engine knows of its defaults, empty if the files alone compute what was measured.
    """

    difference: float
    note: str = ""

    @property
    def same(self) -> bool:
        """Whether the files alone compute what the runner does."""
        return self.difference <= SAME


def alone(engine: Engine, folder: Path, runner: Runner, inputs: Sequence[Tensor]) -> Alone | None:
    """Compare the files in ``folder`` with the runner that wrote them; None if their runtime is not on this machine.

    Raises:
        EngineError: the runtime does not open the files.
    """
    plain = engine.plain(folder)
    if plain is None:
        return None
    try:
        theirs, ours = plain(*inputs), runner(*inputs)
    except Exception as error:  # of the runtime: what was measured is not lost for it
        return Alone(UNLIKE, f"it does not run the files: {summary(error)}")
    pairs = zip(parts_of(theirs), parts_of(ours), strict=True)
    largest = max((_distance(a, b) for a, b in pairs), default=0.0)
    known = largest > SAME and runner.precision == "f32"
    return Alone(largest, engine.plain_note if known else "")


def _distance(a: Tensor, b: Tensor) -> float:
    """The relative distance of what is no mask; ``UNLIKE`` where shapes, masks, infinities or NaN differ."""
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
