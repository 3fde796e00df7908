"""One weight in, its codes or its zeros out.

``SOLVERS`` and ``PRUNERS`` are the tables; ``ask`` solves a weight with one of their entries, chosen by
``solver_choice``, ``pruner_choice`` or ``joint_choice``.
"""

from tersor.solvers.adaround import AdaRound
from tersor.solvers.ask import (
    JOINT,
    SOLVERS,
    Answer,
    Choice,
    ask,
    joint_choice,
    pruner_choice,
    record,
    solver_choice,
    solver_for,
)
from tersor.solvers.awq import Awq
from tersor.solvers.budget import allocate, allocate_bits
from tersor.solvers.easyquant import EasyQuant
from tersor.solvers.gptq import Gptq
from tersor.solvers.hqq import Hqq
from tersor.solvers.obq import Obq
from tersor.solvers.output_error import curve
from tersor.solvers.problem import Geometry, LayerProblem, LayerRecord, LayerSolution, Solver
from tersor.solvers.prune import PRUNERS
from tersor.solvers.rtn import Rtn
from tersor.solvers.sparse_gptq import SparseGptq
from tersor.solvers.sparsity import PrunedLayer, Pruner, Sparsity

__all__ = [
    "JOINT",
    "PRUNERS",
    "SOLVERS",
    "AdaRound",
    "Answer",
    "Awq",
    "Choice",
    "EasyQuant",
    "Geometry",
    "Gptq",
    "Hqq",
    "LayerProblem",
    "LayerRecord",
    "LayerSolution",
    "Obq",
    "PrunedLayer",
    "Pruner",
    "Rtn",
    "Solver",
    "SparseGptq",
    "Sparsity",
    "allocate",
    "allocate_bits",
    "ask",
    "curve",
    "joint_choice",
    "pruner_choice",
    "record",
    "solver_choice",
    "solver_for",
]
