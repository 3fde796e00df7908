"""One weight in, its codes out, or its zeros."""

from typing import Any

from tersor.solvers.adaround import AdaRound
from tersor.solvers.budget import allocate, allocate_bits
from tersor.solvers.easyquant import EasyQuant
from tersor.solvers.gptq import Gptq
from tersor.solvers.hqq import Hqq
from tersor.solvers.obq import Obq
from tersor.solvers.output_error import curve
from tersor.solvers.problem import Geometry, LayerProblem, LayerSolution, Solver
from tersor.solvers.prune import PRUNERS
from tersor.solvers.records import LayerRecord, record
from tersor.solvers.rtn import Rtn
from tersor.solvers.sparse_gptq import SparseGptq
from tersor.solvers.sparsity import PrunedLayer, Sparsity

SOLVERS: dict[str, type[Solver]] = {
    "rtn": Rtn,
    "easyquant": EasyQuant,
    "gptq": Gptq,
    "obq": Obq,
    "hqq": Hqq,
    "adaround": AdaRound,
}
"""All solvers by name."""



def solver_for(name: str, range: str, seed: int = 0) -> Solver:
    """The solver that a recipe names, with the range that it names.

    >>> solver_for("gptq", "minmax").range
    'minmax'
    """
    span: Any = "minmax" if range == "minmax" else "mse"
    if name == "rtn":
        return Rtn(span, seed=seed)
    if name == "gptq":
        return Gptq(span)
    return SOLVERS[name]()


__all__ = [
    "PRUNERS",
    "SOLVERS",
    "AdaRound",
    "EasyQuant",
    "Geometry",
    "Gptq",
    "Hqq",
    "LayerProblem",
    "LayerRecord",
    "LayerSolution",
    "Obq",
    "PrunedLayer",
    "Rtn",
    "Solver",
    "SparseGptq",
    "Sparsity",
    "allocate",
    "allocate_bits",
    "curve",
    "record",
    "solver_for",
]
