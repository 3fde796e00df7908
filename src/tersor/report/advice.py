"""What to do next: after a report as a whole, and about one layer as a rule for a recipe."""

import re
from typing import Any

import yaml

from tersor.engines import ENGINES
from tersor.measure.formatting import EXACT, db_text
from tersor.measure.headline import Diagnosis, fallbacks
from tersor.measure.schema import Layer, Report
from tersor.measure.speed import simulated, speed
from tersor.recipe import PRESETS
from tersor.words import _, shown

# Below this error of one layer (in dB; 6 dB are one bit) it is worth a try to change that layer.
WEAK = 20.0
# What a rule changes of a layer, by its planned precision.
_CHANGES: dict[str, dict[str, Any]] = {
    "int4": {"weights": {"format": "int8"}},
    "int8": {"keep": "fp32"},
    "int16": {"keep": "fp32"},
    "fp8": {"keep": "fp32"},
    "fused": {"keep": "fp32"},
    "fp16": {"keep": "fp32"},
    "bf16": {"keep": "fp32"},
    "fp32": {"keep": "fp32"},
}


def next_step(report: Report, diagnosis: Diagnosis) -> str:
    """One sentence: the remedy of the first problem, or what to do with a good result."""
    found = speed(report)
    if not diagnosis.worked:
        # Slowness with layers in float is cured by the remedy for these layers, which follows it.
        behind = found is not None and found.slower and bool(fallbacks(report))
        remedy = shown(diagnosis.problems[int(behind)].remedy)
        return f"{remedy[:1].upper()}{remedy[1:]}"
    if simulated(report):
        return _("Choose an engine that computes in integers, such as {name}: a simulation saves no time",
                 name=next(name for name, engine in ENGINES.items() if not engine.simulates))  # fmt: skip
    if report.compressed.metric is None:
        return _("Add `evaluate` to the task, so that the metric is measured too")
    weak = weakest(report)
    if weak is not None and (weak.sqnr_db or 0) < WEAK:
        return _("Ship it; if it must be more accurate, start with {name} ({db} dB), whose rule is below",
                 name=weak.name, db=db_text(weak.sqnr_db))  # fmt: skip
    if found is not None and not found.faster:
        return _("Ship it for its size; for speed, try another engine (`--engine auto` times all that are installed)")
    return _("Ship it: the files in this folder run in {engine} without Tersor", engine=report.engine)


def weakest(report: Report) -> Layer | None:
    """The layer with the largest error, if any layer has one."""
    known = [layer for layer in report.layers if layer.sqnr_db is not None and layer.sqnr_db < EXACT]
    return min(known, key=lambda layer: layer.sqnr_db or 0.0, default=None)


def rule_of(report: Report, layer: Layer) -> str:
    """YAML with the rule that changes this layer and no other; with the preset that the report's recipe is.

    >>> from tersor.recipe import Recipe
    >>> layer = Layer(name="a[0].b", op="conv2d", planned="int4", executed=None, weight_format="int4", sqnr_db=9.0,
    ...               accumulated_sqnr_db=8.0, weight_bytes=1)
    >>> print(rule_of(Report.model_construct(recipe="int4-weight"), layer).strip())
    base: int4-weight
    rules:
    - layer: a[[]0].b
      weights:
        format: int8
    """
    rule = {"layer": _glob(layer.name), **_CHANGES[layer.planned]}
    base = {"base": report.recipe} if report.recipe in PRESETS else {}
    return yaml.safe_dump({**base, "rules": [rule]}, sort_keys=False, width=1000)


def _glob(name: str) -> str:
    """A pattern that matches this name only."""
    return re.sub(r"([*?[])", r"[\1]", name)
