"""One weight in, its codes out."""

from tersor.solvers.easyquant import EasyQuant
from tersor.solvers.problem import Geometry, LayerProblem, LayerSolution, Solver, curve
from tersor.solvers.rtn import Rtn

SOLVERS: dict[str, type[Solver]] = {"rtn": Rtn, "easyquant": EasyQuant}
"""All solvers by name."""

__all__ = ["SOLVERS", "EasyQuant", "Geometry", "LayerProblem", "LayerSolution", "Rtn", "Solver", "curve"]
