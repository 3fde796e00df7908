"""One block of a large model: the inputs of its weights, and each weight solved after those before it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tersor.arguments import computes_float64
from tersor.errors import CalibrationError, TersorError
from tersor.network.blocks.calls import Halt
from tersor.network.blocks.reads import Added, See, watching
from tersor.numerics import QTensor, QuantSpec, expand
from tersor.pipeline.folder.plan import WeightPlan
from tersor.pipeline.folder.solving.hessians import Hessians
from tersor.recipe import Quantize
from tersor.solvers import Choice, LayerProblem, LayerRecord, ask, joint_choice, pruner_choice
from tersor.words import said

# The statistics of a layer's inputs that are collected here.
COLLECTED = frozenset({"gram"})
# The method of a weight that stays float.
KEPT = "none"


@dataclass(frozen=True)
class BatchRun:
    """One batch.

    Args:
        compute: runs the block on it.
        token_mask: bool [windows, length], True for real positions; None: all are real.
        original: runs the original block on its inputs in the original model; None: not available.
    """

    compute: Callable[[], Tensor]
    token_mask: Tensor | None = None
    original: Callable[[], Tensor] | None = None


Run = Callable[[], Iterable[BatchRun]]


@dataclass(frozen=True, eq=False)
class SolvedWeight:
    """The result for a weight that was to be quantized.

    Args:
        qtensor: [out, in]; None if it stays float after all.
        seconds: the time spent on solving.
        record: how, and how well.
        note: why it stays float, or is rounded to nearest.
        weight: [out, in], with zeros, if it is sparse and not quantized.
    """

    plan: WeightPlan
    qtensor: QTensor | None
    seconds: float = 0.0
    record: LayerRecord | None = None
    note: str | None = None
    weight: Tensor | None = None

    def on_cpu(self) -> "SolvedWeight":
        """The same with its tensors on the CPU."""
        return replace(
            self,
            qtensor=None if self.qtensor is None else self.qtensor.to("cpu"),
            weight=None if self.weight is None else self.weight.cpu(),
        )

    def row(self) -> dict[str, Any]:
        """The journal's entry for it."""
        record = self.record
        return {
            "name": self.plan.name,
            "method": record.method if record else KEPT,
            "error": record.output_error if record else None,
            "rtn_error": record.rtn_error if record else None,
            "damping": record.damping if record else None,
            "tokens": (record.tokens if record else None) or 0,
            "seconds": self.seconds,
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """A block, or another module with weights to be solved.

    Args:
        module: the module that is run.
        parameters: its own, by their names in the model.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]


def solve_block(
    part: BlockWeights,
    plans: Sequence[WeightPlan],
    run: Run,
    step: Quantize,
    seed: int,
    on_weight: Callable[[SolvedWeight], None],
    original: BlockWeights | None = None,
) -> list[SolvedWeight]:
    """Quantize the weights of a block in place, in the order in which they are read: later ones see the error.

    Args:
        plans: of the block's weights that are to be quantized.
        step: the options; seed: of everything random.
        on_weight: called with each solution, before its parameter changes.
        original: the original block, if the run computes it too.

    Raises:
        TersorError: naming the layer that cannot be solved, unless the step says ``fallback: float``.
    """  # fmt: skip
    needing = {t.slice.parameter for t in plans if needs_data(t)}
    groups, added = _groups(part, needing, run)
    routed = {t.slice.parameter for t in plans if t.expert}
    done: list[SolvedWeight] = []
    for group in [*groups, sorted({t.slice.parameter for t in plans} - needing)]:
        hessians = Hessians(added, routed)
        if watched := [name for name in group if name in needing]:
            _watch(part, watched, hessians, run(), all(part.parameters[n].ndim == 2 for n in watched), original)
        for plan in plans:
            if plan.slice.parameter in group:
                solved = solve_weight(plan, part.parameters[plan.slice.parameter], hessians, step, seed)
                on_weight(solved)
                put(solved, part.parameters[plan.slice.parameter])
                done.append(solved.on_cpu())
    return done


def choice_of(plan: WeightPlan, seed: int = 0) -> Choice:
    """The solver, the pruner, or both in one sweep, that solves a planned weight."""
    assert plan.wanted is not None
    if plan.sparsity is None:
        return plan.wanted.choice(seed)
    if plan.spec is None:
        return pruner_choice(plan.pruner, plan.sparsity, seed)
    return joint_choice(plan.pruner, plan.sparsity, plan.wanted.solver, plan.wanted.range, seed)


def needs_data(plan: WeightPlan) -> bool:
    """Whether its solver or pruner needs the Hessian."""
    return plan.touched and bool(choice_of(plan).needs)


def corrects_upstream_error(plan: WeightPlan) -> bool:
    """Whether its solver compensates for the error of earlier layers, if that is known."""
    return plan.touched and not plan.tail and "cross" in choice_of(plan).wants


def solve_weight(plan: WeightPlan, parameter: Tensor, hessians: Hessians, step: Quantize, seed: int) -> SolvedWeight:
    """One weight against its Hessian; an expert that no token reached is rounded to nearest.

    It is solved where its parameter is, or on the CPU if that device has no float64.
    """
    start, choice, note = time.perf_counter(), choice_of(plan, seed), None
    place = parameter.device if computes_float64(parameter.device) else torch.device("cpu")
    weight = oriented(plan, plan.slice.part(parameter.detach())).to(place, torch.float32).contiguous()
    problem = LayerProblem(plan.name, weight, plan.spec or QuantSpec("fp32"))
    try:
        joint = plan.spec is not None and plan.sparsity is not None
        if choice.needs and plan.expert and not joint and not hessians.reached(plan):
            assert plan.wanted is not None
            if plan.spec is None:
                return SolvedWeight(plan, None, note=said("stays float: no token of the calibration text reached it"))
            choice = plan.wanted.without_data().choice(seed)
            note = said("rounded to nearest: no token of the calibration text reached it")
        elif choice.needs:
            gram = hessians.of(plan)
            cross = hessians.cross(plan, weight)
            problem = replace(problem, gram=gram.hessian.to(place), tokens=gram.rows, cross=cross)
        answer = ask(problem, choice)
        if answer.qtensor is not None:
            check_scales(plan.name, weight, answer.qtensor)
    except TersorError as error:
        if step.fallback == "error":
            text = str(error) if plan.name in str(error) else f"layer {plan.name}: {error}"
            raise CalibrationError(f"{text}; or let it stay float: `fallback: float` in the recipe") from error
        return SolvedWeight(plan, None, note=said("stays float by `fallback: float`: {why}", why=error))
    line = answer.record
    if plan.spec is None:
        line = replace(line, method=f"{line.method} {plan.sparsity}")
    return SolvedWeight(plan, answer.qtensor, time.perf_counter() - start, line, note, answer.weight)


def check_scales(name: str, weight: Tensor, qtensor: QTensor) -> None:
    """Check that raising scales below the smallest normal number of their dtype to it does not ruin the weight.

    Raises:
        CalibrationError: if scales were raised, and more of the weight's power is lost than rounding usually costs.
    """
    least = torch.finfo(getattr(torch, qtensor.spec.scale_dtype)).smallest_normal
    raised = expand(qtensor.scale, weight.shape, qtensor.spec.block) <= least
    lost = ((weight - qtensor.dequantize()).square() * raised).sum()
    # For a normal distribution whose largest value, three standard deviations, is the largest code.
    usual = (3 / qtensor.spec.format.high) ** 2 / 12
    if lost > max(0.01, 2 * usual) * weight.square().sum():
        largest = weight.abs().max().item()
        raise CalibrationError(
            f"layer {name}: its weights, {largest:.2g} at most, need scales below {least:.2g}, the smallest normal "
            f"number of {qtensor.spec.scale_dtype}, in which the folder stores scales: take a model in bfloat16 or "
            "float32 in the layout compressed-tensors, or keep this layer in float with a rule"
        )


def oriented(plan: WeightPlan, weight: Tensor) -> Tensor:
    """A stored weight as [out, in], or back."""
    return weight.t() if plan.transposed else weight


def put(solved: SolvedWeight, parameter: Tensor) -> None:
    """Write the values of the codes into the model."""
    value = solved.weight if solved.qtensor is None else solved.qtensor.dequantize()
    if value is not None:
        solved.plan.slice.part(parameter.data).copy_(oriented(solved.plan, value))


def _groups(part: BlockWeights, needing: set[str], run: Run) -> tuple[list[list[str]], set[str]]:
    """The parameters that need data, in the order in which one batch reads them, and those whose product is added."""
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
    """Accumulate Hessians over those batches; with ``stop``, each batch ends at the last weight."""
    left: set[str] = set()
    ends = set(hessians.added)  # which are finished once their product is added

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
