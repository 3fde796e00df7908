"""Calibration alone: the range that every estimator chooses, and a verdict on the data."""

from pathlib import Path

from tersor.engines import engine as find_engine
from tersor.network.calibrate import Calibrated, calibrate
from tersor.observers import OBSERVERS, assess, compare
from tersor.pipeline.graph.batches import passing
from tersor.pipeline.graph.observe import observed_inputs
from tersor.pipeline.graph.prepare import prepare
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe, resolve
from tersor.task import Task


def calibrated(
    task: Task,
    recipe: Recipe | str | Path = "int8-static",
    engine: str = "openvino",
    *,
    target: str | None = None,
) -> Calibrated:
    """Run the calibration data through the float network and evaluate every estimator.

    Args:
        target: the hardware to plan for, one of the engine's ``targets``; None: this machine.
    """
    recipe = resolve(recipe)
    with Stages() as stages:
        with stages.stage("capture", "capturing and planning"):
            prepared = prepare(task, recipe, find_engine(engine).policy(target))
        with stages.stage("calibrate", "calibrating") as bar:
            values = [*prepared.plan.sources(), *observed_inputs(prepared.network)]
            found = calibrate(prepared.network, values, passing(task, prepared.network), on_batch=bar.at)
    sites = [s for s in prepared.plan.activations() if s.source]
    estimates = {s.name: compare(found.statistics[s.node], s.spec, OBSERVERS) for s in sites}
    return Calibrated(
        prepared.plan, found, estimates, {s.name: s.range for s in sites}, assess(found.statistics)
    )
