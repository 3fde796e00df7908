"""One block of a large model: what its weights read, and each of them solved behind those before it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from tersor.errors import CalibrationError, TersorError
from tersor.network.blocks.awq import clipped
from tersor.network.blocks.chain import Halt
from tersor.network.blocks.reads import Added, See, watching
from tersor.numerics import QTensor, QuantSpec
from tersor.pipeline.folder.hessians import Hessians
from tersor.pipeline.folder.plan import WeightPlan
from tersor.recipe import Recipe
from tersor.solvers import PRUNERS, LayerProblem, LayerRecord, Rtn, SparseGptq, record, solver_for


@dataclass(frozen=True)
class BatchRun:
    """One batch.

    Args:
        compute: the block for it.
        token_mask: bool [windows, length], True for real positions; None: all are real.
        original: computes the block as it was for what it would have read in the original model; None: not known.
    """

    compute: Callable[[], Tensor]
    token_mask: Tensor | None = None
    original: Callable[[], Tensor] | None = None


Run = Callable[[], Iterable[BatchRun]]


@dataclass(frozen=True, eq=False)
class SolvedWeight:
    """A weight that was to be quantized.

    Args:
        qtensor: [out, in]; None where it stays float after all.
        seconds: of solving.
        record: how, and how well.
        note: why it stays float.
        weight: [out, in], with zeros, where it is sparse and not quantized.
    """

    plan: WeightPlan
    qtensor: QTensor | None
    seconds: float = 0.0
    record: LayerRecord | None = None
    note: str | None = None
    weight: Tensor | None = None


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """A block, or what else holds the weights to be solved.

    Args:
        module: what is computed.
        parameters: its own, by their names in the model.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]


def solve_block(
    part: BlockWeights,
    plans: Sequence[WeightPlan],
    run: Run,
    recipe: Recipe,
    on_weight: Callable[[SolvedWeight], None],
    original: BlockWeights | None = None,
) -> list[SolvedWeight]:
    """Quantize the weights of a block in place, those that are read first first: the later ones see the error.

    Args:
        targets: those of the block that are to be quantized.
        on_weight: told of each solution, before its parameter changes.
        original: the block as it was, where the run computes it too.

    Raises:
        TersorError: naming the layer that cannot be solved, unless the recipe says ``fallback: float``.
    """  # fmt: skip
    needing = {t.slice.parameter for t in plans if needs_data(t)}
    groups, added = _groups(part, needing, run)
    done: list[SolvedWeight] = []
    for group in [*groups, sorted({t.slice.parameter for t in plans} - needing)]:
        hessians = Hessians(added)
        if watched := [name for name in group if name in needing]:
            _watch(part, watched, hessians, run(), all(part.parameters[n].ndim == 2 for n in watched), original)
        for plan in plans:
            if plan.slice.parameter in group:
                solved = solve_weight(plan, part.parameters[plan.slice.parameter], hessians, recipe)
                on_weight(solved)
                put(solved, part.parameters[plan.slice.parameter])
                done.append(solved)
    return done


def needs_data(plan: WeightPlan) -> bool:
    """Whether its solver or its range wants the Hessian."""
    wanted = plan.wanted
    if plan.sparsity is not None:  # without data nothing could be said of the harm that zeros do
        return True
    return wanted is not None and (wanted.range == "awq" or "gram" in solver_for(wanted.solver, wanted.range).needs)


def corrects_upstream_error(plan: WeightPlan) -> bool:
    """Whether its solver makes up for what layers in front of it have lost, where it knows."""
    wanted = plan.wanted
    return plan.spec is not None and plan.sparsity is None and not plan.tail and wanted is not None and (
        "cross" in getattr(solver_for(wanted.solver, wanted.range), "wants", ())
    )  # fmt: skip


def solve_weight(plan: WeightPlan, parameter: Tensor, hessians: Hessians, recipe: Recipe) -> SolvedWeight:
    """One weight against its Hessian."""
    assert plan.wanted is not None
    start, tokens = time.perf_counter(), 0
    weight = oriented(plan, plan.slice.part(parameter.detach())).float().contiguous()
    problem = LayerProblem(plan.name, weight, plan.spec or QuantSpec("fp32"))
    try:
        if not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise CalibrationError(f"layer {plan.name}: {bad} of its weights are NaN or infinite; repair it")
        if needs_data(plan):
            gram = hessians.of(plan)
            tokens, problem = gram.rows, replace(problem, gram=gram.hessian, tokens=gram.rows)
            problem = replace(problem, cross=hessians.cross(plan, weight))
        if plan.spec is None:
            return _pruned(plan, problem, tokens, start)
        if plan.sparsity is not None:
            span = "minmax" if plan.wanted.range == "minmax" else "mse"
            solution = SparseGptq(plan.sparsity, span)(problem)
        elif plan.wanted.range == "awq":
            bounded = replace(problem, weight=clipped(weight, hessians.of(plan), plan.spec))
            solution = replace(Rtn("minmax")(bounded), method="rtn, clipped for the outputs")
        else:
            solution = solver_for(plan.wanted.solver, plan.wanted.range, recipe.seed)(problem)
        line = record(problem, solution, tokens)
    except TersorError as error:
        if recipe.fallback == "error":
            text = str(error) if plan.name in str(error) else f"layer {plan.name}: {error}"
            raise CalibrationError(f"{text}; or let it stay float: `fallback: float` in the recipe") from error
        return SolvedWeight(plan, None, note=f"stays float by `fallback: float`: {error}")
    return SolvedWeight(plan, solution.qtensor, time.perf_counter() - start, line)


def _pruned(plan: WeightPlan, problem: LayerProblem, tokens: int, start: float) -> SolvedWeight:
    assert plan.sparsity is not None
    found = PRUNERS[plan.pruner]()(problem, plan.sparsity)
    bits = 32 * problem.weight.numel()
    line = LayerRecord(problem.name, f"{found.method} {plan.sparsity}", bits, 0.0, found.output_error, tokens=tokens)
    return SolvedWeight(plan, None, time.perf_counter() - start, line, weight=found.weight)


def oriented(plan: WeightPlan, weight: Tensor) -> Tensor:
    """A stored weight as [out, in], or back."""
    return weight.t() if plan.transposed else weight


def put(solved: SolvedWeight, parameter: Tensor) -> None:
    """The values of the codes into the model."""
    value = solved.weight if solved.qtensor is None else solved.qtensor.dequantize()
    if value is not None:
        solved.plan.slice.part(parameter.data).copy_(oriented(solved.plan, value))


def _groups(part: BlockWeights, needing: set[str], run: Run) -> tuple[list[list[str]], set[str]]:
    """The parameters that need data, by the order in which one batch reads them; those whose product is added."""
    if not needing:
        return [], set()
    seen = Hessians()
    _watch(part, sorted(needing), seen, islice(run(), 1), stop=False)
    order = seen.order()
    return [*order, *([n] for n in sorted(needing - {n for group in order for n in group}))], seen.added


def _watch(
    part: BlockWeights,
    names: Sequence[str],
    hessians: Hessians,
    steps: Iterable[BatchRun],
    stop: bool,
    original: BlockWeights | None = None,
) -> None:
    """Gather Hessians over those batches; with ``stop`` none goes further than to the last weight."""
    left: set[str] = set()
    ends = set(hessians.added)  # which are done with when their product is added

    def done(name: str) -> None:
        left.discard(name)
        if stop and not left:
            raise Halt

    def watch(at: BlockWeights, see: See, sums: Added, compute: Callable[[], Tensor]) -> None:
        def read(name: str, index: int | None, transposed: bool, x: Tensor) -> None:
            see(name, index, transposed, x)
            if name not in ends:
                done(name)

        def added(name: str, product: Tensor, stream: Tensor) -> None:
            sums(name, product, stream)
            done(name)

        left.update(names)
        with watching(at.module, {n: at.parameters[n] for n in names}, read, added), suppress(Halt):
            compute()

    for step in steps:
        hessians.next_batch(step.token_mask)
        if original is not None and step.original is not None:
            watch(original, hessians.on_original_product, hessians.on_original_sum, step.original)
        watch(part, hessians.on_product, hessians.on_sum, step.compute)
