"""One weight in, its codes out."""

from tersor.solvers.problem import Geometry, LayerProblem, LayerSolution, Solver, curve
from tersor.solvers.rtn import Rtn

SOLVERS: dict[str, type[Solver]] = {"rtn": Rtn}
"""All solvers by name."""

__all__ = ["SOLVERS", "Geometry", "LayerProblem", "LayerSolution", "Rtn", "Solver", "curve"]
