"""Build the Report from the measurements."""

import os
from collections.abc import Mapping, Sequence

import torch

from tersor.engines import ENGINES
from tersor.engines.base import Account, Executed
from tersor.engines.targets import cpuinfo, here, isa_flags, saturates
from tersor.measure import describe_environment, peak_bytes, unknown, with_headline
from tersor.measure.environment import usable_processors
from tersor.measure.layers import LayerNoise
from tersor.measure.metric import direction_warnings
from tersor.measure.onestep import sentence
from tersor.measure.schema import (
    Audit,
    CalibrationSummary,
    CheckedValue,
    Compressed,
    Eager,
    Histogram,
    Layer,
    Metric,
    OneStep,
    Original,
    Ratios,
    Report,
    Samples,
    Timings,
)
from tersor.measure.speed import Speed
from tersor.observers import CalibrationQuality, assess
from tersor.pipeline.graph.audit import Audited, audit
from tersor.pipeline.graph.measuring import Measured, Subjects
from tersor.pipeline.graph.reporting.layers import connections, site_histograms, weight_bytes, weight_histograms
from tersor.pipeline.graph.solve import Solved
from tersor.recipe import Recipe
from tersor.words import said

_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
_HAS_LOAD = hasattr(os, "getloadavg")  # not on Windows
BOUNDLESS = 1e9  # codes, written for NaN or infinity of the engine, which JSON lacks


def make_report(
    subjects: Subjects,
    recipe: Recipe,
    solved: Solved,
    measured: Measured,
    account: Account,
    noise: dict[str, LayerNoise],
    seconds: dict[str, float],
) -> Report:
    """The Report of one compression."""
    audited = audit(solved.prepared.plan, account.executed, ENGINES[subjects.engine].unaudited)
    quality = assess(solved.calibration.statistics) if solved.calibration.statistics else None
    histograms = site_histograms(solved)
    layers = _layers(audited, solved, noise, measured.times, histograms)
    original, compressed, simulated = (measured.metric.get(k) for k in ("original", "compressed", "simulation"))
    peak, check = peak_bytes(), _one_step(account, ENGINES[subjects.engine].tolerance)
    unknowns = [unknown(path, reason) for path, reason in _reasons_for_null(measured, layers, peak).items()]
    warnings = [*unknowns, *_warnings(subjects, solved, measured, audited, quality, check)]
    report = Report(
        task=subjects.task.name,
        recipe=recipe.name,
        engine=subjects.engine,
        environment=describe_environment(
            threads=subjects.threads,
            precision=_PRECISIONS[subjects.compressed_runner.precision],
            target=solved.prepared.policy.target, device=_solved_on(solved),
        ),
        seed=recipe.seed,
        samples=Samples(
            calibration=solved.calibration.samples, evaluation=original.samples if original else None
        ),
        metric=Metric(name=subjects.task.metric, higher_is_better=subjects.task.higher_is_better),
        original=Original(
            bytes=measured.bytes["original"],
            metric=original.value if original else None,
            latency_ms=measured.latency["original"],
            memory_bytes=measured.memory.get("original"),
            energy_joules=measured.energy.get("original"),
        ),
        original_eager=Eager(latency_ms=measured.latency["eager"]),
        compressed=Compressed(
            bytes=measured.bytes["compressed"],
            metric=compressed.value if compressed else None,
            metric_interval=measured.interval,
            metric_simulated=simulated.value if simulated else None,
            agreement=measured.agreement,
            latency_ms=measured.latency["compressed"],
            memory_bytes=measured.memory.get("compressed"),
            energy_joules=measured.energy.get("compressed"),
        ),
        ratios=_ratios(subjects, measured),
        layers=layers,
        audit=_audit_rows(account.executed, audited, measured.times),
        one_step=check,
        histograms=tuple(histograms.values()),
        calibration=_verdict(quality),
        timings_s=Timings.of(seconds),
        peak_memory_bytes=peak,
        warnings=tuple(warnings),
    )
    return with_headline(report)


def _solved_on(solved: Solved) -> torch.device | None:
    """The device on which Hessians were collected, if any were."""
    return next((gram.hessian.device for gram in solved.observations.grams.values()), None)


def _warnings(
    subjects: Subjects,
    solved: Solved,
    measured: Measured,
    audited: list[Audited],
    quality: CalibrationQuality | None,
    check: OneStep | None,
) -> list[str]:
    return [
        *_network_notes(subjects, solved),
        *measured.warnings,
        *(quality.warnings if quality else ()),
        *direction_warnings(subjects.task.metric, subjects.task.higher_is_better),
        *_simulation_warnings(measured, check),
        *_half_warnings(audited),
        *_timing_warnings(subjects, measured),
    ]


def _reasons_for_null(measured: Measured, layers: tuple[Layer, ...], peak: int | None) -> dict[str, str]:
    """The reason for every null figure of the report, by the figure's dotted path."""
    reasons = dict(measured.unknown)
    if any(layer.weight_bytes is None for layer in layers):
        reasons["layers.weight_bytes"] = said("the weight is computed at run time")
    if any(layer.executed is None for layer in layers):
        reasons["layers.executed"] = said("the engine does not report it")
    if peak is None:
        reasons["peak_memory_bytes"] = said("the system does not report it")
    return reasons


def _ratios(subjects: Subjects, measured: Measured) -> Ratios:
    original, compressed = measured.metric.get("original"), measured.metric.get("compressed")
    drop = None
    if original and compressed:
        drop = original.value - compressed.value
        drop = drop if subjects.task.higher_is_better else -drop
    return Ratios(
        compression=measured.bytes["original"] / measured.bytes["compressed"],
        speedup=measured.speedup.value,
        speedup_over_eager=measured.latency["eager"].median / measured.latency["compressed"].median,
        metric_drop=drop,
        speedup_spread=(measured.speedup.low, measured.speedup.high),
    )


def _layers(
    audited: list[Audited],
    solved: Solved,
    noise: dict[str, LayerNoise],
    times: Mapping[str, float],
    histograms: Mapping[str, Histogram],
) -> tuple[Layer, ...]:
    weights, connected, layers = weight_histograms(solved), connections(solved, histograms), []
    sizes = weight_bytes(solved)
    for row in audited:
        layer, found = row.layer, noise.get(row.layer.node)
        inputs, reads = connected[layer.node]
        layers.append(
            Layer(
                name=layer.name,
                op=layer.op,
                planned=layer.planned,  # type: ignore[arg-type]
                executed=row.executed,  # type: ignore[arg-type]
                weight_format=layer.weight_format,
                sqnr_db=found.local.db if found else None,
                accumulated_sqnr_db=found.accumulated.db if found else None,
                weight_bytes=sizes[layer.node],
                note=row.explained(solved.prepared.policy.engine),
                inputs=inputs,
                reads=reads,
                weights=weights.get(layer.node),
                milliseconds=times.get(row.operator) if row.operator else None,
            )
        )
    return tuple(layers)


def _one_step(account: Account, tolerance: float) -> OneStep | None:
    if not account.steps:
        return None
    steps = (
        CheckedValue(
            name=s.name,
            ops=s.ops,
            verdict=s.verdict,
            largest=min(s.largest, BOUNDLESS),
            beyond=s.beyond,
            note=s.note,
        )
        for s in account.steps
    )
    return OneStep(tolerance=tolerance, steps=tuple(steps))


def _audit_rows(
    executed: Sequence[Executed], audited: list[Audited], times: Mapping[str, float]
) -> tuple[Audit, ...]:
    planned = {row.layer.node: row.layer for row in audited}
    rows = []
    for item in executed:
        layer = next((planned[n] for n in item.nodes if n in planned), None)
        name = layer.name if layer else ", ".join(item.nodes) or item.name
        rows.append(
            Audit(
                name=name,
                op=item.op,
                planned=layer.planned if layer else None,
                executed=item.precision,
                note=item.note,
                milliseconds=times.get(item.name),
            )
        )
    return tuple(rows)


def _verdict(verdict: CalibrationQuality | None) -> CalibrationSummary | None:
    if verdict is None:
        return None
    moved = [m for m in verdict.moved.values() if m is not None]
    drift = max(moved) if moved else None
    return CalibrationSummary(adequate=not verdict.warnings, drift=drift, notes=verdict.warnings)


def _network_notes(subjects: Subjects, solved: Solved) -> list[str]:
    notes, policy = list(subjects.original.notes), solved.prepared.policy
    if policy.reduced_weights:
        notes.append(
            said(
                "planned for {target}, which has no VNNI: its u8·s8 kernels add pairs of products in 16 bits, "
                "which saturate silently; weights are limited to 7 bits (codes within ±63), which is exact",
                target=policy.target,
            )
        )
    if not policy.reduced_weights and saturates(policy.target, isa_flags(cpuinfo())):
        notes.append(
            said(
                "planned for {target}, measured on {machine}, which has no VNNI: products of 8-bit weights "
                "saturate here, so metric and latency in the engine are not those of the target",
                target=policy.target, machine=here().name,
            )
        )
    return [*notes, *ENGINES[subjects.engine].notes]


def _simulation_warnings(measured: Measured, check: OneStep | None) -> list[str]:
    share = measured.simulation_agreement
    if share is None or share >= 0.98:
        return []
    text = said("nothing was checked operator by operator") if check is None else sentence(check)
    return [said("engine and simulation make the same prediction for only {share}", share=f"{share:.1%}") + f"; {text}"]


def _timing_warnings(subjects: Subjects, measured: Measured) -> list[str]:
    found = Speed(measured.speedup.value, measured.speedup.low, measured.speedup.high)
    if ENGINES[subjects.engine].simulates or not found.busy:
        return []
    low, high = (f"{bound:.2f}x" for bound in (found.low, found.high))
    varied = said("the speed-up varied from {low} to {high} over the rounds, as on a busy machine: measure again on an "
                  "idle one", low=low, high=high)  # fmt: skip
    if not _HAS_LOAD:
        return [varied]
    load, count = f"{os.getloadavg()[0]:.1f}", usable_processors()
    return [f"{varied}; " + said("load average {load} on {count} processors", load=load, count=count)]


def _half_warnings(audited: list[Audited]) -> list[str]:
    kept = [a.layer.name for a in audited if a.layer.planned in ("fp16", "bf16") and a.executed == "fp32"]
    if not kept:
        return []
    names = ", ".join(kept)
    return [said("stored in half precision, computed in FP32 by this engine on this CPU: {names}", names=names)]
