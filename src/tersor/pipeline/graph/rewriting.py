"""Rewrites that need statistics: probe a few samples, rewrite the float network, plan again."""

from tersor.network.calibrate import calibrate
from tersor.network.rewrites import REWRITES
from tersor.network.rewrites.smooth import is_transformer, smoothable
from tersor.network.sites import Plan
from tersor.network.verify import rewritten
from tersor.pipeline.graph.batches import passing, seeded, some
from tersor.pipeline.graph.observing.observe import PROBED
from tersor.pipeline.graph.prepare import Prepared
from tersor.pipeline.progress import Stages
from tersor.recipe import Quantize
from tersor.task import Task
from tersor.words import _

# Rows of a value on which smoothing strengths are compared.
TRIED = 256


def rewrite_by_probe(task: Task, step: Quantize, prepared: Prepared, stages: Stages, seed: int = 0) -> Prepared:
    """The network, equalized and smoothed as the step requires, and its plan; later passes observe this network.

    Args:
        seed: of the data's random numbers, set again before each pass.
    """
    if wants_equalization(step, prepared.plan):
        prepared = _equalized(task, step, prepared, stages, seed)
    if wants_smoothing(step, prepared):
        prepared = _smoothed(task, step, prepared, stages, seed)
    return prepared


def wants_equalization(step: Quantize, plan: Plan) -> bool:
    """Whether to equalize: by default if weights share one scale across channels, since only these benefit."""
    if step.equalize == "auto":
        return any(s.spec.granularity.kind == "tensor" for s in plan.weights())
    return step.equalize == "on"


def wants_smoothing(step: Quantize, prepared: Prepared) -> bool:
    """Whether to smooth: by default for Transformers (detected in the graph) with calibrated activations."""
    if step.smooth == "auto":
        return step.activations.when == "static" and is_transformer(prepared.network)
    return step.smooth == "on"


def _equalized(task: Task, step: Quantize, prepared: Prepared, stages: Stages, seed: int) -> Prepared:
    for name in ("absorb_bias", "equalize"):  # absorb first: a channel's constant part would count as part of its range
        with stages.stage("calibrate", _("equalizing layers")) as bar, seeded(seed):
            values = {*prepared.plan.sources(), *(s.node for s in prepared.plan.weights())}
            batches = some(passing(task, prepared.network), step.correction_samples)
            probed = calibrate(prepared.network, values, batches, on_batch=bar.at)
            prepared = prepared.planned_again(rewritten(prepared.network, REWRITES[name](), probed.statistics), step)
    return prepared


def _smoothed(task: Task, step: Quantize, prepared: Prepared, stages: Stages, seed: int) -> Prepared:
    with stages.stage("calibrate", _("smoothing layers")) as bar, seeded(seed):
        planned = {s.node for s in prepared.plan.weights()}
        found = smoothable(prepared.network)
        names = [name for name, layers in found.items() if all(n.name in planned for n in layers)]
        batches = some(passing(task, prepared.network), PROBED)
        alpha = None if step.smooth_alpha == "auto" else step.smooth_alpha
        probed = calibrate(
            prepared.network,
            names,
            batches,
            channels_last=names,
            keep=0 if alpha is not None else TRIED,
            on_batch=bar.at,
        )
        smoothed = rewritten(prepared.network, REWRITES["smooth"](alpha), probed.statistics)
        return prepared.planned_again(smoothed, step)
