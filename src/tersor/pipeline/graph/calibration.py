"""Calibration alone: the range that every estimator chooses, and a verdict on the data."""

from pathlib import Path

from tersor.engines import engine as find_engine
from tersor.network.calibrate import Calibrated, Calibration, calibrate
from tersor.observers import OBSERVERS, CalibrationQuality, assess, compare
from tersor.pipeline.graph.batches import passing
from tersor.pipeline.graph.observing.observe import observed_inputs
from tersor.pipeline.graph.prepare import prepare
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe, resolve
from tersor.task import Task
from tersor.turns import in_turn
from tersor.words import _, said

_WHY = {
    "dynamic": said("they are quantized at run time"),
    "never": said("they stay in float"),
    "static": said("the engine {engine} computes no operator of this network in integers"),
}


@in_turn
def calibrated(
    task: Task,
    recipe: Recipe | str | Path = "int8-static",
    engine: str = "openvino",
    *,
    target: str | None = None,
    progress: bool = True,
) -> Calibrated:
    """Run the calibration data through the float network and evaluate every estimator.

    Without activations to calibrate no data is run; there are no estimates, and the verdict says why.

    Args:
        target: the hardware to plan for, one of the engine's ``targets``; None: this machine.
        progress: show progress bars on a terminal.
    """
    recipe = resolve(recipe)
    with Stages(progress) as stages:
        with stages.stage("capture", _("capturing and planning")):
            prepared = prepare(task, recipe, find_engine(engine).policy(target))
        sites = [s for s in prepared.plan.activations() if s.source]
        if not sites:
            return Calibrated(prepared.plan, Calibration({}, {}, 0, 0), {}, {}, _nothing(recipe, engine))
        with stages.stage("calibrate", _("calibrating")) as bar:
            values = [*prepared.plan.sources(), *observed_inputs(prepared.network)]
            found = calibrate(prepared.network, values, passing(task, prepared.network), on_batch=bar.at)
    estimates = {s.name: compare(found.statistics[s.node], s.spec, OBSERVERS) for s in sites}
    return Calibrated(
        prepared.plan, found, estimates, {s.name: s.range for s in sites}, assess(found.statistics)
    )


def _nothing(recipe: Recipe, engine: str) -> CalibrationQuality:
    why = _WHY[recipe.quantize.activations.when].format(engine=engine)
    warning = (
        said(
            "the recipe {recipe} calibrates no activations, since {why}: there is no range to choose; a static "
            "recipe such as int8-static has some",
            recipe=recipe.name, why=why,
        )
    )
    return CalibrationQuality(0, {}, 0.0, (warning,))
