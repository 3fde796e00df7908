"""The saved files alone: opened by the engine's own runtime with its defaults, as anyone else opens them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tersor.engines.base import Engine, Runner

# A relative difference beyond which the files alone are not what was measured: a few values rounded the other way.
SAME = 0.002


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
    theirs, ours = plain(*inputs), runner(*inputs)
    pairs = zip(*((x,) if isinstance(x, Tensor) else tuple(x) for x in (theirs, ours)), strict=True)
    largest = max((_distance(a, b) for a, b in pairs), default=0.0)
    return Alone(largest, "" if largest <= SAME else engine.plain_note)


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = (torch.nan_to_num(x.double(), 0.0, 1e30, -1e30) for x in (a, b))
    return float((a - b).norm() / b.norm().clamp_min(1e-12)) if not torch.equal(a, b) else 0.0
