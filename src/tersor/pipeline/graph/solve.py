"""Calibrate, choose ranges, solve weights, correct biases: from a plan to a quantized network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tersor.errors import RecipeError, TersorError
from tersor.network.calibrate import Calibration, calibrate
from tersor.network.chunks import largest_value
from tersor.network.corrections.bias import CorrectBias
from tersor.network.corrections.int32_bias import fit_biases
from tersor.network.network import Network, argument, groups_of, op_name, walk
from tersor.network.quantize import Range, quantize_network
from tersor.network.rewrites import REWRITES
from tersor.network.rewrites.smooth import is_transformer, smoothable
from tersor.network.sites import Plan, Site
from tersor.network.verify import rewritten
from tersor.observers.gram import Gram
from tersor.pipeline.graph.batches import Batch, joined, keeping, passing, some
from tersor.pipeline.graph.grams import grams
from tersor.pipeline.graph.inputs import fitted_input_ranges
from tersor.pipeline.graph.prepare import Prepared
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe
from tersor.solvers import Answer, Geometry, LayerProblem, ask
from tersor.task import Task, batch_size

PROBED = 64
# Rows of a value on which strengths of smoothing are tried.
TRIED = 256


@dataclass(frozen=True)
class Solved:
    """A quantized network and how it was made; ``samples`` are the first of the calibration data."""

    prepared: Prepared
    network: Network
    calibration: Calibration
    ranges: dict[str, Range]
    solutions: dict[str, Answer]
    samples: tuple[Any, ...]


def solve(task: Task, recipe: Recipe, prepared: Prepared, stages: Stages) -> Solved:
    """The quantized network of a plan."""
    if wants_equalization(recipe, prepared.plan):
        prepared = _equalized(task, recipe, prepared, stages)
    if wants_smoothing(recipe, prepared):
        prepared = _smoothed(task, recipe, prepared, stages)
    mean_samples = correction_samples(recipe, prepared.network) if recipe.bias_correction else 0
    with stages.stage("calibrate", "calibrating") as bar:
        first: list[tuple[Any, ...]] = []
        everything = passing(task, prepared.network)
        # Nothing but repeated samples is looked for where no range is to be chosen.
        needed = everything if prepared.plan.activations() or mean_samples else some(everything, PROBED)
        batches = keeping(needed, first, max(mean_samples, 1))
        extra = observed_inputs(prepared.network)
        calibration = calibrate(prepared.network, prepared.plan, batches, mean_samples, extra, on_batch=bar.at)
    hessians = _hessians(task, prepared, stages)
    with stages.stage("solve", "choosing ranges and weights", len(prepared.plan.sites)) as bar:
        ranges = activation_ranges(prepared.plan, calibration, bar.advance)
        ranges = fitted_input_ranges(prepared.network, prepared.plan, ranges, one_batch(prepared.network, first, 16))
        solutions = _solve_weights(task, recipe, prepared, ranges, hessians, bar.advance)
        ranges = _with_solved_inputs(prepared, ranges, solutions)
        weights = {name: a.qtensor for name, a in solutions.items() if a.qtensor is not None}
        network = rewritten(prepared.network, quantize_network, prepared.plan, ranges, weights)
    if recipe.bias_correction and calibration.means:
        with stages.stage("solve", "correcting biases", len(calibration.means)) as bar:
            samples = one_batch(network, first, calibration.mean_samples)
            network = rewritten(network, CorrectBias(calibration.means), samples, bar.advance)
    if prepared.policy.integer_biases:
        network = rewritten(network, fit_biases)
    return Solved(prepared, network, calibration, ranges, solutions, one_batch(network, first, 64))


def wants_equalization(recipe: Recipe, plan: Plan) -> bool:
    """Equalization helps weights that share one scale across channels, and nothing else."""
    if recipe.equalize == "auto":
        return any(s.spec.granularity.kind == "tensor" for s in plan.weights())
    return recipe.equalize == "on"


def _equalized(task: Task, recipe: Recipe, prepared: Prepared, stages: Stages) -> Prepared:
    for name in ("absorb_bias", "equalize"):  # a channel's constant part would count as its size
        with stages.stage("calibrate", "equalizing layers") as bar:
            layers = [s.node for s in prepared.plan.weights()]
            batches = some(passing(task, prepared.network), recipe.correction_samples)
            probed = calibrate(prepared.network, prepared.plan, batches, extra=layers, on_batch=bar.at)
            prepared = prepared.planned_again(rewritten(prepared.network, REWRITES[name](), probed.statistics), recipe)
    return prepared


def wants_smoothing(recipe: Recipe, prepared: Prepared) -> bool:
    """Smoothing is for Transformers with calibrated activations; the graph tells which network is one."""
    if recipe.smooth == "auto":
        return recipe.activations.when == "static" and is_transformer(prepared.network)
    return recipe.smooth == "on"


def _smoothed(task: Task, recipe: Recipe, prepared: Prepared, stages: Stages) -> Prepared:
    with stages.stage("calibrate", "smoothing layers") as bar:
        planned = {s.node for s in prepared.plan.weights()}
        found = smoothable(prepared.network)
        names = [name for name, layers in found.items() if all(n.name in planned for n in layers)]
        batches = some(passing(task, prepared.network), PROBED)
        alpha = None if recipe.smooth_alpha == "auto" else recipe.smooth_alpha
        probed = calibrate(
            prepared.network,
            Plan((), ()),
            batches,
            extra=names,
            channels_last=names,
            keep=0 if alpha is not None else TRIED,
            on_batch=bar.at,
        )
        smoothed = rewritten(prepared.network, REWRITES["smooth"](alpha), probed.statistics)
        return prepared.planned_again(smoothed, recipe)


def observed_inputs(network: Network) -> list[str]:
    """The float inputs, observed so that repeated samples are noticed."""
    nodes = [n for n in network.graph.nodes if n.op == "placeholder"]
    return [n.name for n, x in zip(nodes, network.example, strict=True) if x.is_floating_point()]


def one_batch(network: Network, batches: list[Batch], samples: int) -> Batch:
    """So many samples as one batch; where the network fixes its batch, the first one."""
    return joined(batches, samples) if network.dynamic_batch else batches[0]


def correction_samples(recipe: Recipe, network: Network, budget: int = 2**31) -> int:
    """How many samples bias correction walks with at once: fewer where the network's values are large."""
    if not network.dynamic_batch:
        return batch_size(network.example)
    return max(1, min(recipe.correction_samples, budget // (4 * largest_value(network))))


def activation_ranges(
    plan: Plan, calibration: Calibration, on_site: Callable[[], None] = lambda: None
) -> dict[str, Range]:
    """The range of every group of activation sites: fixed by the policy, or by its estimator."""
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


def _hessians(task: Task, prepared: Prepared, stages: Stages) -> dict[str, Gram]:
    """By weight, the Gram matrix of all inputs of the layers whose solver asks for it."""
    sites = [s for s in prepared.plan.weights() if "gram" in s.asked.choice().needs]
    if not sites:
        return {}
    problems = {s.node: _problem(prepared.network, s) for s in sites}
    found: dict[str, Gram] = {}
    with stages.stage("calibrate", "collecting Hessians") as bar:
        for node, gram in grams(task, prepared, problems, bar.at).items():
            group = next(s.group for s in sites if s.node == node)
            found[group] = found[group].merged(gram) if group in found else gram
    return found


def _problem(network: Network, site: Site) -> LayerProblem:
    return LayerProblem(site.name, network.tensor(site.group), site.spec, _geometry(network.node(site.node)))


def _solve_weights(
    task: Task,
    recipe: Recipe,
    prepared: Prepared,
    ranges: dict[str, Range],
    hessians: dict[str, Gram],
    on_site: Callable[[], None],
) -> dict[str, Answer]:
    samples = _input_samples(task, recipe, prepared)
    solved: dict[tuple[str, str], Answer] = {}
    solutions = {}
    for site in prepared.plan.weights():
        on_site()
        # Layers that share a weight share its codes.
        key = (site.group, str(site.spec))
        if key not in solved:
            solved[key] = _solution(site, recipe, prepared, ranges, samples, hessians.get(site.group))
        solutions[site.node] = solved[key]
    return solutions


def _solution(
    site: Site,
    recipe: Recipe,
    prepared: Prepared,
    ranges: dict[str, Range],
    samples: dict[str, Tensor],
    hessian: Gram | None,
) -> Answer:
    problem, choice = _problem(prepared.network, site), site.asked.choice(recipe.seed)
    problem = replace(problem, gram=None if hessian is None else hessian.hessian, sample=samples.get(site.node))
    if choice.input_observer is not None:
        source = _input_site(prepared.plan, prepared.network.node(site.node))
        if source is None:
            raise RecipeError(f"{site.name}: {choice.name} chooses weight and input together; this input stays float")
        low, high = ranges[source.group]
        problem = replace(problem, input_spec=source.spec, input_range=(float(low), float(high)))
    return ask(problem, choice)


def _input_site(plan: Plan, node: Any) -> Site | None:
    return next((s for s in plan.activations() if s.node == node.args[0].name), None)


def _geometry(node: Any) -> Geometry:
    if not op_name(node).startswith("conv"):
        return Geometry()
    spatial = int(op_name(node)[-2]) if op_name(node)[-2].isdigit() else 2

    def each(position: int, name: str, default: int) -> Any:
        value = argument(node, position, name, [default])
        return value if isinstance(value, str) else tuple(value) * (spatial if len(value) == 1 else 1)

    return Geometry(each(3, "stride", 1), each(4, "padding", 0), each(5, "dilation", 1), groups_of(node))


def _input_samples(task: Task, recipe: Recipe, prepared: Prepared) -> dict[str, Tensor]:
    """A few inputs of every layer whose solver needs them."""
    wanted: dict[str, list[str]] = {}
    for site in prepared.plan.weights():
        if "sample" in site.asked.choice().needs:
            wanted.setdefault(prepared.network.node(site.node).all_input_nodes[0].name, []).append(site.node)
    if not wanted:
        return {}
    kept: dict[str, Tensor] = {}

    def keep(node: Any, value: Any) -> None:
        for reader in wanted.get(node.name, ()):
            kept[reader] = value

    batches = some(passing(task, prepared.network), 8)
    walk(prepared.network, one_batch(prepared.network, list(batches), 8), keep)
    return kept


def _with_solved_inputs(
    prepared: Prepared, ranges: dict[str, Range], solutions: dict[str, Answer]
) -> dict[str, Range]:
    """The ranges, with those that a solver chose for its layer's input, where no other operator reads that input."""
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
