"""Solve one weight: the choice of a solver or pruner with all its options, the result, and its record.

This is the only place where a solver is taken from the tables. A weight's values are checked before it is solved, and
every error carries the layer's name.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tersor.errors import NumericsError, RecipeError, TersorError
from tersor.numerics import QTensor, all_finite
from tersor.solvers.adaround import AdaRound
from tersor.solvers.awq import Awq
from tersor.solvers.easyquant import EasyQuant
from tersor.solvers.gptq import Gptq
from tersor.solvers.hqq import Hqq
from tersor.solvers.obq import Obq
from tersor.solvers.output_error import measured_error
from tersor.solvers.problem import LayerProblem, LayerRecord, LayerSolution, Solver
from tersor.solvers.prune import PRUNERS
from tersor.solvers.rtn import Rtn
from tersor.solvers.sparse_gptq import SparseGptq
from tersor.solvers.sparsity import Pruner, Sparsity
from tersor.solvers.weights.zeros import with_zeros
from tersor.tables import Named, allowed, described, found, made, name_of, option_names, options_of

SOLVERS: dict[str, type[Solver]] = {
    "rtn": Rtn,
    "easyquant": EasyQuant,
    "awq": Awq,
    "gptq": Gptq,
    "obq": Obq,
    "hqq": Hqq,
    "adaround": AdaRound,
}
"""All solvers by name."""

JOINT: dict[tuple[str, str], type[Solver]] = {("sparsegpt", "gptq"): SparseGptq}
"""By pruner and solver, what prunes and quantizes in one sweep."""

DEFAULT = "rtn"
# The default range of a recipe.
UNSAID = "minmax"
# The solver options that a recipe's ``range`` sets: the first one that the solver has.
_RANGE_OPTIONS = ("range", "start")


@dataclass(frozen=True)
class Choice:
    """The solver or pruner of a weight, with all options.

    Args:
        name: the entry of the table, for messages.
        by: a solver, or a pruner, which leaves the weight in float.
        sparsity: the target of a pruner; None for a solver.
    """

    name: str
    by: Solver | Pruner
    sparsity: Sparsity | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The fields of LayerProblem that must be given: ``gram``, ``sample``.

        A pruner always gets the Gram matrix: without it, the error caused by the zeros could not be measured.
        """
        return frozenset(self.by.needs) | ({"gram"} if self.sparsity else frozenset())

    @property
    def wants(self) -> frozenset[str]:
        """Optional fields that are used if given: ``cross``."""
        return frozenset(getattr(self.by, "wants", ()))

    @property
    def by_row(self) -> bool:
        """Whether the codes of an output with its own scale depend only on that output's weights."""
        return getattr(self.by, "by_row", False)

    @property
    def input_observer(self) -> str | None:
        """For a solver that also chooses the input's range: the entry of OBSERVERS that gives its initial range."""
        return getattr(self.by, "input_observer", None)


def solver_choice(
    solver: Named = DEFAULT, range: Named = UNSAID, *, rounding: str = "nearest", seed: int = 0
) -> Choice:
    """The solver that a recipe asks for.

    Args:
        solver: an entry of SOLVERS, alone or with its options.
        range: a value of the solver's own option ``range`` (or ``start``); or a solver that can be named as a range,
            such as ``easyquant``.
        rounding: ``stochastic`` is for solvers with a seed.
        seed: for solvers that have one and are not given another.

    Raises:
        RecipeError: naming the key, the value and what is allowed.

    >>> solver_choice("obq", "minmax").by.range, solver_choice({"gptq": {"damping": 0.02}}).by.damping
    ('minmax', 0.02)
    """
    span = name_of(range)
    if is_solver(span):
        if solver != DEFAULT:
            spans = " and ".join(_own_ranges(name_of(solver))[1]) or "of none"
            raise RecipeError(f"solver {name_of(solver)} takes the ranges {spans}, not the solver {span}")
        solver, defaults = range, {}
    else:
        defaults = _range_option(solver, range)
    choice = Choice(name_of(solver), made(SOLVERS, solver, "solver", seed=seed, **defaults))
    if rounding == "stochastic" and "seed" not in option_names(choice.by):
        able = ", ".join(n for n, s in SOLVERS.items() if "seed" in option_names(s))
        raise RecipeError(
            f"solver {name_of(solver)} rounds to nearest, not by chance: leave `rounding: stochastic` out, or take one "
            f"of the solvers {able}"
        )
    return choice


def pruner_choice(pruner: Named, sparsity: Sparsity, seed: int = 0) -> Choice:
    """The pruner that a recipe asks for, with its target.

    Raises:
        RecipeError: naming the key, the value and what is allowed.

    >>> pruner_choice({"sparsegpt": {"damping": 0.02}}, Sparsity(0.5)).by
    SparseGpt(damping=0.02)
    """
    return Choice(name_of(pruner), made(PRUNERS, pruner, "pruner", seed=seed), sparsity)


def joint_choice(pruner: Named, sparsity: Sparsity, solver: Named, range: Named = UNSAID, seed: int = 0) -> Choice:
    """The solver that prunes and quantizes in one sweep, with the options of both.

    Raises:
        RecipeError: if the pair is not in JOINT, or an option applies to only one of the two, or is given twice.

    >>> joint_choice("sparsegpt", Sparsity.parse("2:4"), {"gptq": {"damping": 0.02}}).by.damping
    0.02
    """
    key = (name_of(pruner), name_of(solver))
    if key not in JOINT:
        pairs = " or ".join(f"the pruner {p} and the solver {s}" for p, s in JOINT)
        raise RecipeError(f"sparse and quantized at once are {pairs}, in one sweep, not {key[0]} and {key[1]}")
    name, options = " with ".join(key), options_of(pruner) | options_of(solver)
    twice = [k for k, v in options_of(pruner).items() if options[k] != v]
    if twice:
        raise RecipeError(f"{name}: {twice[0]} is {options_of(pruner)[twice[0]]} and {options[twice[0]]}; name it once")
    defaults = _range_option(solver, range)
    return Choice(name, made({name: JOINT[key]}, {name: options}, "solver", sparsity=sparsity, seed=seed, **defaults))


def solver_for(name: str, range: str, seed: int = 0) -> Any:
    """The solver of ``solver_choice``; kept for callers of earlier versions.

    >>> solver_for("gptq", "minmax").range
    'minmax'
    """
    return solver_choice(name, range, seed=seed).by


def is_solver(range: str) -> bool:
    """Whether a range is the name of a solver allowed there: one that chooses ranges by the layer's outputs."""
    return range in SOLVERS and getattr(SOLVERS[range], "is_range", False)


def weight_ranges() -> list[str]:
    """All names that ``range`` may have for weights."""
    own = (span for name in SOLVERS for span in _own_ranges(name)[1])
    return list(dict.fromkeys([*own, *filter(is_solver, SOLVERS)]))


def _own_ranges(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The option of a solver that a recipe's range sets, and its values; None and () for a solver without."""
    entry = found(SOLVERS, name, "solver")
    option = next((o for o in _RANGE_OPTIONS if o in option_names(entry)), None)
    return option, allowed(entry, option) if option else ()


def _range_option(solver: Named, range: Named) -> dict[str, Any]:
    """The option of a solver, with its value, that a recipe's range sets."""
    name, span, given = name_of(solver), name_of(range), options_of(solver)
    option, spans = _own_ranges(name)
    if option is None:
        if span == UNSAID:  # as in a recipe without a range
            return {}
        raise RecipeError(f"solver {name} has no range to choose, so `range: {span}` has no meaning; leave it out")
    if span not in spans:
        raise RecipeError(f"solver {name} takes the ranges {' and '.join(spans)}, not {span}")
    if options_of(range):
        raise RecipeError(f"range {described(range)}: {span} has no options")
    if span != UNSAID and given.get(option, span) != span:
        raise RecipeError(f"solver {name}: its {option} is {given[option]} and `range` is {span}; name one of the two")
    return {option: span}


@dataclass(frozen=True, eq=False)
class Answer:
    """The result for a weight.

    Args:
        record: how, and how well.
        qtensor: its codes; None if it stays float.
        weight: its values with zeros, if it was only pruned.
        input_range: the range of the layer's input, if the solver chose it.
    """

    record: LayerRecord
    qtensor: QTensor | None = None
    weight: Tensor | None = None
    input_range: tuple[float, float] | None = None


def ask(problem: LayerProblem, choice: Choice) -> Answer:
    """Solve one weight.

    Raises:
        TersorError: of the solver's kind, starting with the layer's name.
        NumericsError: for a weight or statistics that contain NaN or infinity.

    >>> from tersor.numerics import QuantSpec
    >>> problem = LayerProblem("fc", torch.tensor([[0.1, 0.2, -0.3, 2.0]]), QuantSpec("int4", "channel"))
    >>> answer = ask(problem, solver_choice("rtn", "minmax"))
    >>> answer.qtensor.codes.tolist(), answer.record.method
    ([[0, 1, -1, 7]], 'rtn minmax')
    """
    try:
        _check_finite(problem)
        if choice.sparsity is None:
            solution: LayerSolution = with_zeros(problem, choice.by(problem))  # type: ignore[call-arg]
            return Answer(record(problem, solution), solution.qtensor, input_range=solution.input_range)
        pruned = choice.by(problem, choice.sparsity)  # type: ignore[call-arg]
        line = LayerRecord(
            problem.name, pruned.method, 32 * problem.weight.numel(), 0.0, pruned.output_error, tokens=problem.tokens
        )
        return Answer(line, weight=pruned.weight)
    except TersorError as error:
        if str(error).startswith(f"layer {problem.name}: "):
            raise
        raise type(error)(f"layer {problem.name}: {error}") from error


def _check_finite(problem: LayerProblem) -> None:
    for what, values in (("weights", problem.weight), ("inputs", problem.sample), ("statistics", problem.gram)):
        if values is not None and not all_finite(values):
            bad = int((~torch.isfinite(values)).sum())
            raise NumericsError(
                f"layer {problem.name}: {bad} of its {what} are NaN or infinite; repair the weight or the calibration "
                "data, or keep this layer in float by a rule"
            )


def record(problem: LayerProblem, solution: LayerSolution, tokens: int | None = None) -> LayerRecord:
    """The record of a layer that was solved; ``tokens`` is the ``rows`` of its ``Gram``.

    >>> from tersor.numerics import QuantSpec
    >>> gram = torch.tensor([[[2.0, 1.8], [1.8, 2.0]]])
    >>> problem = LayerProblem("fc", torch.tensor([[0.4, 0.4], [1.0, -1.0]]), QuantSpec("int2", "tensor"), gram=gram)
    >>> line = record(problem, Rtn("minmax")(problem), tokens=3)
    >>> line.method, line.bits, line.tokens, round(line.output_error, 3)
    ('rtn minmax', 40, 3, 0.752)
    """
    plain = solution.rtn_error
    if plain is None and problem.gram is not None:
        plain = measured_error(problem, Rtn("minmax")(replace(problem, sample=None)))
    return LayerRecord(
        problem.name,
        solution.method,
        8 * solution.qtensor.nbytes,
        solution.sqnr_db,
        measured_error(problem, solution),
        plain,
        (problem.tokens if solution.tokens is None else solution.tokens) if tokens is None else tokens,
        solution.damping,
    )
