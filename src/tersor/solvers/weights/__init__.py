"""Which single weights of a network become zero first: scores by name."""

from tersor.solvers.weights.obs import Obs
from tersor.solvers.weights.plain import Magnitude, Obd, Random, Taylor, Wanda
from tersor.solvers.weights.problem import Curvature, WeightProblem, WeightScore

WEIGHT_SCORES: dict[str, type[WeightScore]] = {
    "random": Random,
    "magnitude": Magnitude,
    "wanda": Wanda,
    "taylor": Taylor,
    "obd": Obd,
    "obs": Obs,
}
"""Scores by name: an entry is called with a ``WeightProblem`` and returns the loss of every weight."""

__all__ = ["WEIGHT_SCORES", "Curvature", "WeightProblem", "WeightScore"]
