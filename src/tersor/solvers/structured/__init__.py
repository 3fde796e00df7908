"""Which channels, heads or hidden units go first, and how the layers that read them make up for it: tables."""

from tersor.solvers.structured.obs import StructuredObs
from tersor.solvers.structured.plain import (
    ActivationZeros,
    BatchNormScale,
    Fisher,
    GeometricMedian,
    Magnitude,
    Random,
    Taylor,
    Wanda,
)
from tersor.solvers.structured.problem import GroupProblem, Ranking, Reader, Score
from tersor.solvers.structured.repairs import REPAIRS, Moments, Repair

SCORES: dict[str, type[Score]] = {
    "random": Random,
    "magnitude": Magnitude,
    "batchnorm": BatchNormScale,
    "apoz": ActivationZeros,
    "geometric-median": GeometricMedian,
    "wanda": Wanda,
    "taylor": Taylor,
    "fisher": Fisher,
    "obs": StructuredObs,
}
"""Scores by name: an entry is called with a ``GroupProblem`` and returns a ``Ranking``."""

__all__ = ["REPAIRS", "SCORES", "GroupProblem", "Moments", "Ranking", "Reader", "Repair", "Score"]
