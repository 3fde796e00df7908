"""Which layers a quantization costs most: estimated for all, measured for the worst, and kind by kind."""

import json
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from tersor.arguments import whole
from tersor.checkpoints.destination import write_page
from tersor.engines import engine as find_engine
from tersor.errors import CalibrationError, RecipeError
from tersor.measure.choosing.sensitivity import KINDS, LayerCost, Stage, cost_of, kind_of, worth_keeping
from tersor.measure.fidelity import SignalNoise, compare
from tersor.measure.layers import own_value
from tersor.measure.metric import evaluate_metric
from tersor.network.network import Network, title, walk
from tersor.pipeline.graph.batches import Batch, exactly, passing, seeded
from tersor.pipeline.graph.outliers import page_file
from tersor.pipeline.graph.pruning.padding import padded, real_tokens
from tersor.pipeline.graph.pruning.reading import drawn_loss
from tersor.pipeline.graph.pruning.trials import divergence
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import through
from tersor.recipe import Quantize, Recipe, Train, resolve
from tersor.report.sensitivity import page
from tersor.search.partly import Partly, parts_of, quantized_operators
from tersor.task import Task, batch_size, check_task
from tersor.task.unchanged import unchanged
from tersor.terminal import Shown
from tersor.turns import in_turn
from tersor.words import _

Noise = dict[str, tuple[SignalNoise, float]]


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity(Shown):
    """The result of ``sensitivity``, shown as a table in notebooks and by ``rich``.

    Attributes:
        task, recipe, engine: the names of what was quantized, how, and for what.
        samples: how many were run.
        layers: one record for every operator that is quantized, in execution order.
        whole: the divergence with all of them quantized, a sample.
        kept: those worth keeping in float, worst first.
        without: the divergence with all but these quantized; None if there are none.
        stages: one kind of layer quantized after the other.
        metric: the name of the task's metric; None if it was not evaluated.
    """

    task: str
    recipe: str
    engine: str
    samples: int
    layers: tuple[LayerCost, ...]
    whole: float
    kept: tuple[LayerCost, ...]
    without: float | None
    stages: tuple[Stage, ...]
    metric: str | None = None

    def rules(self) -> list[dict[str, str]]:
        """The rules of a step ``quantize`` that keep these layers in float."""
        return [{"layer": escape(layer.name), "keep": "fp32"} for layer in self.kept]

    def to_html(self, path: Path | str) -> Path:
        """Write one self-contained page with a chart of the layers, and return its path.

        Args:
            path: a file that ends in ``.html``; any other path is a folder, in which ``sensitivity.html`` is written.
        """
        return write_page(page_file(path, "sensitivity.html"), page(self))

    def to_json(self) -> str:
        """The report as JSON."""
        data: dict[str, Any] = {
            "task": self.task, "recipe": self.recipe, "engine": self.engine, "samples": self.samples,
            "whole": self.whole, "without": self.without, "rules": self.rules(), "metric": self.metric,
            "layers": [layer.to_dict() for layer in self.layers], "stages": [vars(stage) for stage in self.stages],
        }  # fmt: skip
        return json.dumps(data, allow_nan=False)


@in_turn
def sensitivity(
    task: Task, recipe: Recipe | str | Path = "int8-static", engine: str = "openvino", *, samples: int = 64,
    measured: int = 12, metric: bool = False, progress: bool = True,
) -> Sensitivity:
    """Find the layers that a recipe's quantization costs most, and those worth keeping in float.

    The network is quantized as the recipe says. Then each operator is quantized alone, the others in float: its
    output's SQNR, and an estimate of how far the network's outputs move, (gᵀe)²/2 for its error e and the gradient g
    of a prediction drawn from the network. For the worst the divergence is measured: Kullback and Leibler's of
    classes, half the squared difference over the variance of other outputs. Last, one kind of layer is quantized
    after the other, feed-forward layers first. Biases are not corrected: that depends on all layers in front. Steps
    `train` of the recipe are left out.

    Args:
        engine: whose rules the plan follows.
        samples: of the calibration data; sensitivities are ranked on what ranges were chosen by.
        measured: of how many layers the divergence is measured.
        metric: also evaluate the task's metric behind every kind of layers, in simulation.
        progress: show progress bars on a terminal.

    Raises:
        RecipeError: the recipe quantizes nothing, or the engine has no plan.
        CalibrationError: invalid data, as in ``compress``.

    >>> import torch, tersor
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    >>> data = [(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)),)]
    >>> found = sensitivity(tersor.Task("mlp", net, (torch.zeros(1, 8),), lambda: data), engine="torch", progress=False)
    >>> [layer.name for layer in found.layers], [stage.kind for stage in found.stages]
    (['0', '2'], ['ffn', 'projection'])
    """
    check_task(task, "sensitivity")
    samples = whole("samples", samples, 1, None, "64 rank layers", CalibrationError)
    recipe = resolve(recipe)
    with Stages(progress) as stages:
        solved, seed = _solved(task, recipe, engine, stages), recipe.seed
        floats, quantized = solved.prepared.network, solved.network
        operators = quantized_operators(floats, quantized)
        if not operators:
            raise RecipeError(f"the recipe {recipe.name} quantizes no operator of {task.name} in {engine}")
        with seeded(seed):
            batches = [padded(task, b) for b in exactly(passing(task, floats), samples, floats.dynamic_batch)]
        with stages.stage("measure", _("estimating what each layer costs"), len(batches)) as bar:
            found: Noise = {}
            for number, batch in enumerate(batches):
                _add(found, _of_batch(floats, quantized, operators, batch, seed + number))
                bar.advance()
        layers = _records(solved, operators, found, sum(map(batch_size, batches)))
        judge = _Judge(floats, quantized, batches)
        with stages.stage("measure", _("measuring the worst"), measured + len(KINDS) + 2) as bar:
            layers = _measured(layers, operators, judge, measured, bar.advance)
            names = {title(n): n.name for n in operators}
            kept = worth_keeping(layers)
            rest = set(names.values()) - {names[layer.name] for layer in kept}
            everything = judge(set(names.values()))
            without = judge(rest) if kept else None
            trail = _trail(operators, floats, judge, task if metric else None, bar.advance)
    return Sensitivity(
        task.name, recipe.name, engine, judge.samples, tuple(layers), everything, tuple(kept), without, tuple(trail),
        task.metric if metric else None,
    )  # fmt: skip


def _solved(task: Task, recipe: Recipe, engine: str, stages: Stages) -> Solved:
    # Corrected biases compensate for the errors of all layers in front, which are not there when one is alone.
    untrained = [step for step in recipe.steps if not isinstance(step, Train)]
    steps = [s.model_copy(update={"bias_correction": False}) if isinstance(s, Quantize) else s for s in untrained]
    subject = start(task, recipe, GraphHost(find_engine(engine).policy(None)), stages)
    with unchanged(task.model, "calibration"):
        found = through(steps, subject, task, stages).details
    if not isinstance(found, Solved):
        raise RecipeError(f"the recipe {recipe.name} has no step `quantize`: there is nothing to rate")
    return found


def _of_batch(
    floats: Network, quantized: Network, operators: list[fx.Node], batch: Batch, seed: int
) -> Noise:
    """Of each operator the noise of its output and (gᵀe)²/2, summed over the samples of a batch."""
    found: Noise = {}
    twins = {n.name: n for n in quantized.graph.nodes}
    generator = torch.Generator().manual_seed(seed)
    for part in parts_of(batch, floats):
        values: dict[str, Any] = {}

        def see(node: fx.Node, value: Any, values: dict[str, Any] = values) -> None:
            computed = node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point()
            if computed and not value.requires_grad:
                value.requires_grad_()
            values[node.name] = value

        outputs = [y for y in walk(floats, part, see, gradients=True) if isinstance(y, Tensor)]
        loss = drawn_loss([real_tokens(part, y) for y in outputs if y.requires_grad], generator)
        if not loss.requires_grad:
            raise RecipeError(
                "the network returns no floating-point values that its layers decide, so there is nothing to rate them "
                "by: let the model return scores"
            )
        watched = [n.name for n in operators if isinstance(values[n.name], Tensor) and values[n.name].requires_grad]
        slopes = dict(
            zip(watched, torch.autograd.grad(loss, [values[n] for n in watched], allow_unused=True), strict=True)
        )
        with torch.no_grad():
            for node in operators:
                _add(found, {node.name: _noise(values, twins[node.name], quantized, slopes.get(node.name))})
    return found


def _noise(
    values: dict[str, Any], twin: fx.Node, quantized: Network, slope: Tensor | None
) -> tuple[SignalNoise, float]:
    exact, own = values[twin.name], own_value(twin, values, quantized)
    exact, own = (x if isinstance(x, Tensor) else x[0] for x in (exact, own))
    if slope is None:
        return compare(exact, own), 0.0
    moved = (slope * (own - exact)).double().reshape(len(own), -1).sum(1)
    return compare(exact, own), float(moved.square().sum()) / 2


def _add(found: Noise, more: Noise) -> None:
    for name, (noise, estimate) in more.items():
        known = found.get(name, (SignalNoise(), 0.0))
        found[name] = known[0] + noise, known[1] + estimate


def _records(solved: Solved, operators: list[fx.Node], found: Noise, samples: int) -> list[LayerCost]:
    formats = {layer.node: layer.planned for layer in solved.prepared.plan.layers}
    floats = solved.prepared.network
    batch = batch_size(floats.example)
    return [
        cost_of(n, floats, formats.get(n.name, ""), found[n.name][0], found[n.name][1] / samples, batch)
        for n in operators
    ]


class _Judge:
    """The divergence of the outputs from those in float, a sample, when some operators are quantized."""

    def __init__(self, floats: Network, quantized: Network, batches: list[Batch]) -> None:
        self.floats, self.quantized, self.batches = floats, quantized, batches
        self.samples = sum(map(batch_size, batches))
        self.wanted = [self._outputs(frozenset(), batch) for batch in batches]

    def __call__(self, names: set[str]) -> float:
        found = (self._outputs(names, batch) for batch in self.batches)
        total = sum(sum(map(divergence, *pair)) for pair in zip(self.wanted, found, strict=True))
        return max(0.0, total) / self.samples

    def _outputs(self, names: Any, batch: Batch) -> list[Tensor]:
        values = Partly(self.floats, self.quantized, names).outputs(batch)
        return [real_tokens(batch, y) for y in values if isinstance(y, Tensor) and y.is_floating_point()]


def _measured(
    layers: list[LayerCost], operators: list[fx.Node], judge: _Judge, count: int, advance: Any
) -> list[LayerCost]:
    """The records with the divergence of the worst."""
    worst = sorted(range(len(layers)), key=lambda k: -layers[k].estimate)[:count]
    found = dict[int, LayerCost]()
    for k in worst:
        found[k] = replace(layers[k], divergence=judge({operators[k].name}))
        advance()
    return [found.get(k, layer) for k, layer in enumerate(layers)]


def _trail(
    operators: list[fx.Node], floats: Network, judge: _Judge, task: Task | None, advance: Any
) -> list[Stage]:
    """One kind of layer quantized after the other."""
    names, found = set[str](), list[Stage]()
    for kind in KINDS:
        more = {n.name for n in operators if kind_of(n, floats) == kind}
        advance()
        if not more:
            continue
        names |= more
        metric = None
        if task is not None and task.evaluate is not None:
            metric = evaluate_metric(task.evaluate, Partly(floats, judge.quantized, names), "the simulation").value
        found.append(Stage(kind, len(names), judge(names), metric))
    return found
