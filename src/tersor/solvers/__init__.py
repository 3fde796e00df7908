"""One weight in, its codes out."""

from tersor.solvers.easyquant import EasyQuant
from tersor.solvers.gptq import Gptq
from tersor.solvers.problem import Geometry, LayerProblem, LayerSolution, Solver, curve
from tersor.solvers.rtn import Rtn

SOLVERS: dict[str, type[Solver]] = {"rtn": Rtn, "easyquant": EasyQuant, "gptq": Gptq}
"""All solvers by name."""

__all__ = ["SOLVERS", "EasyQuant", "Geometry", "Gptq", "LayerProblem", "LayerSolution", "Rtn", "Solver", "curve"]
