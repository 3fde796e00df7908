"""Choose ranges, solve weights, correct biases: from a plan and observations to a quantized network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tersor.arguments import computes_float64
from tersor.errors import CalibrationError, RecipeError, TersorError
from tersor.network.calibrate import Calibration
from tersor.network.corrections.bias import CorrectBias
from tersor.network.corrections.int32_bias import fit_biases
from tersor.network.network import Network
from tersor.network.observations import Observations, signature
from tersor.network.placement import drowned
from tersor.network.quantize import Range, quantize_network
from tersor.network.sites import Plan, Site
from tersor.network.verify import rewritten
from tersor.observers.gram import Gram
from tersor.pipeline.graph.batches import Batch, one_batch
from tersor.pipeline.graph.inputs import fitted_input_ranges
from tersor.pipeline.graph.observing.grams import layer_problem
from tersor.pipeline.graph.observing.observe import observables
from tersor.pipeline.graph.prepare import Prepared
from tersor.pipeline.progress import Stages
from tersor.recipe import Quantize
from tersor.solvers import Answer, LayerProblem, ask
from tersor.words import _

# Samples used to place operators, and the number of times that the resulting plan is checked again.
PLACED, ROUNDS = 8, 4


@dataclass(frozen=True)
class Solved:
    """A quantized network with its plan and solutions; ``samples`` are the first calibration samples, as one batch."""

    prepared: Prepared
    network: Network
    observations: Observations
    ranges: dict[str, Range]
    solutions: dict[str, Answer]
    samples: Batch

    @property
    def calibration(self) -> Calibration:
        """The observed statistics and means."""
        return self.observations.calibration


def solve(step: Quantize, prepared: Prepared, observations: Observations, stages: Stages, seed: int = 0) -> Solved:
    """The quantized network of a plan, from the observations of its float network.

    Only the first samples of the data, which the observations keep, are run again, to correct biases.

    Raises:
        CalibrationError: the observations are of another network, or lack values that the plan needs.
        RecipeError, TersorError: naming the site or layer that cannot be solved.
    """
    if signature(prepared.network) != observations.network:
        raise CalibrationError("these observations are of another network; observe the one that is planned")
    prepared = _placed(step, prepared, observations)
    observations = observations.only(observables(step, prepared))
    calibration, first = observations.calibration, observations.first
    with stages.stage("solve", _("choosing ranges and weights"), len(prepared.plan.sites)) as bar:
        ranges = activation_ranges(prepared.plan, calibration, bar.advance)
        ranges = fitted_input_ranges(prepared.network, prepared.plan, ranges, one_batch(prepared.network, first, 16))
        solutions = _solve_weights(prepared, ranges, observations, seed, bar.advance)
        ranges = _with_solved_inputs(prepared, ranges, solutions)
        weights = {name: a.qtensor for name, a in solutions.items() if a.qtensor is not None}
        network = rewritten(prepared.network, quantize_network, prepared.plan, ranges, weights)
    if step.bias_correction and calibration.means:
        with stages.stage("solve", _("correcting biases"), len(calibration.means)) as bar:
            samples = one_batch(network, first, calibration.mean_samples)
            network = rewritten(network, CorrectBias(calibration.means), samples, bar.advance)
    if prepared.policy.integer_biases:
        network = rewritten(network, fit_biases)
    return Solved(prepared, network, observations, ranges, solutions, one_batch(network, first, 64))


def _placed(step: Quantize, prepared: Prepared, observations: Observations) -> Prepared:
    """The plan without the quantizers that would drown a part of their values."""
    if not prepared.plan.activations() or not observations.first:
        return prepared
    samples = one_batch(prepared.network, observations.first, PLACED)
    floats: dict[str, str] = {}
    for _round in range(ROUNDS):
        ranges = activation_ranges(prepared.plan, observations.calibration)
        found = drowned(prepared.network, prepared.plan, ranges, samples)
        if not found.keys() - floats.keys():
            break
        floats |= found
        again = prepared.planned_again(prepared.network, step, floats)
        if set(again.plan.sources()) - observations.observed.values:
            break
        prepared = again
    return prepared


def activation_ranges(
    plan: Plan, calibration: Calibration, on_site: Callable[[], None] = lambda: None
) -> dict[str, Range]:
    """The range of every group of activation sites: fixed by the policy, or chosen by its estimator."""
    ranges: dict[str, Range] = {}
    for site in plan.activations():
        on_site()
        if site.group in ranges:
            continue
        try:
            ranges[site.group] = site.fixed or site.asked.observer().range(
                calibration.of_group(plan, site.group), site.spec
            )
        except TersorError as error:
            raise type(error)(f"{site.name}: {error}") from error
    return ranges


def _hessians(plan: Plan, grams: Mapping[str, Gram]) -> dict[str, Gram]:
    """For each weight, the Gram matrix of the inputs of all layers that read it."""
    found: dict[str, Gram] = {}
    for site in plan.weights():
        if site.node in grams:
            gram = grams[site.node]
            found[site.group] = found[site.group].merged(gram) if site.group in found else gram
    return found


def _solve_weights(
    prepared: Prepared,
    ranges: dict[str, Range],
    observations: Observations,
    seed: int,
    on_site: Callable[[], None],
) -> dict[str, Answer]:
    hessians = _hessians(prepared.plan, observations.grams)
    solved: dict[tuple[str, str], Answer] = {}
    solutions = {}
    for site in prepared.plan.weights():
        on_site()
        # Layers that share a weight share its codes.
        key = (site.group, str(site.spec))
        if key not in solved:
            sample, hessian = observations.inputs.get(site.node), hessians.get(site.group)
            solved[key] = _solution(site, prepared, ranges, sample, hessian, seed)
        solutions[site.node] = solved[key]
    return solutions


def _solution(
    site: Site,
    prepared: Prepared,
    ranges: dict[str, Range],
    sample: Tensor | None,
    hessian: Gram | None,
    seed: int,
) -> Answer:
    node, choice = prepared.network.node(site.node), site.asked.choice(seed)
    problem = replace(layer_problem(prepared.network, node), name=site.name, spec=site.spec)
    problem = replace(problem, sample=sample)
    if hessian is not None:
        problem = _where_solvable(replace(problem, gram=hessian.hessian), hessian.hessian.device)
    if choice.input_observer is not None:
        source = _input_site(prepared.plan, node)
        if source is None:
            raise RecipeError(f"{site.name}: {choice.name} chooses weight and input together; this input stays float")
        low, high = ranges[source.group]
        problem = replace(problem, input_spec=source.spec, input_range=(float(low), float(high)))
    answer = ask(problem, choice)
    return answer if answer.qtensor is None else replace(answer, qtensor=answer.qtensor.to("cpu"))


def _where_solvable(problem: LayerProblem, device: torch.device) -> LayerProblem:
    """The problem with its tensors on a device, or on the CPU if that device has no float64."""
    place = device if computes_float64(device) else torch.device("cpu")
    given = {name: getattr(problem, name) for name in ("weight", "sample", "gram", "cross")}
    return replace(problem, **{name: t.to(place) for name, t in given.items() if t is not None})


def _input_site(plan: Plan, node: Any) -> Site | None:
    return next((s for s in plan.activations() if s.node == node.args[0].name), None)


def _with_solved_inputs(
    prepared: Prepared, ranges: dict[str, Range], solutions: dict[str, Answer]
) -> dict[str, Range]:
    """The ranges, with a solver's range for its layer's input if no other operator reads that input."""
    ranges = dict(ranges)
    for name, solution in solutions.items():
        node = prepared.network.node(name)
        source = _input_site(prepared.plan, node)
        if solution.input_range is None or source is None or not source.asked.solves_range:
            continue
        members = [s for s in prepared.plan.activations() if s.group == source.group]
        if len(members) == 1 and len(node.args[0].users) == 1:  # type: ignore[union-attr]
            ranges[source.group] = solution.input_range
    return ranges
