"""The report as a value: the content of `report.json`, validated by pydantic when read and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tersor.checkpoints.foreign.files import checked, in_folder, read_json
from tersor.errors import TersorError
from tersor.measure.nulls import missing_explanations
from tersor.measure.parts.base import ReportPart
from tersor.measure.parts.contract import Contract
from tersor.measure.parts.gates import Pair, Zeros
from tersor.measure.parts.pruning import Pruning
from tersor.measure.parts.training import Training
from tersor.terminal import Shown

SCHEMA_VERSION = 1

Precision = Literal["int4", "int8", "int16", "fp8", "fp16", "bf16", "fp32", "fused"]
Bytes = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]


class Latency(ReportPart):
    """Milliseconds per call. `rounds` are the medians of the interleaved rounds, in execution order."""

    median: Milliseconds
    p10: Milliseconds
    p90: Milliseconds
    runs: Annotated[int, Field(ge=1)] = 1
    rounds: tuple[Milliseconds, ...] = ()


class Environment(ReportPart):
    """The environment of the measurement. `precision` is the engine's setting for float operators.

    `target` is the target hardware of the plan, or None in reports of versions without targets. `device` is the
    one that Hessians were collected and weights solved on.
    """

    cpu: str | None
    isa: tuple[str, ...]
    threads: Annotated[int, Field(ge=1)]
    precision: str
    versions: dict[str, str]
    system: str = ""
    target: str | None = None
    device: str = "cpu"


class Samples(ReportPart):
    """The number of samples used for calibration and for the metric."""

    calibration: int | None
    evaluation: int | None


class Metric(ReportPart):
    """The metric. Accuracies are fractions: 0.917, not 91.7."""

    name: str
    higher_is_better: bool


class Original(ReportPart):
    """FP32 in the same engine. `memory_bytes` are the resident bytes that loading and calling it adds."""

    bytes: Bytes | None
    metric: float | None
    latency_ms: Latency | None
    memory_bytes: Bytes | None
    energy_joules: Annotated[float, Field(ge=0)] | None = None


class Eager(ReportPart):
    """The user's FP32 network: eager PyTorch, same threads."""

    latency_ms: Latency | None


class Compressed(ReportPart):
    """The deployed network in the engine. `metric_simulated` is the simulation's metric, for comparison only."""

    bytes: Annotated[Bytes | None, Field(description="every file that must be shipped")]
    metric: float | None
    metric_interval: Annotated[
        Interval | None,
        Field(description="paired 95 % interval of ratios.metric_drop: entirely above 0 means significantly worse"),
    ]
    metric_simulated: float | None
    agreement: Annotated[Share | None, Field(description="share of predictions equal to FP32's")]
    latency_ms: Latency | None
    memory_bytes: Bytes | None
    energy_joules: Annotated[float, Field(ge=0)] | None = None


class Ratios(ReportPart):
    """Original over compressed: above 1 is better. `metric_drop` is positive if the compressed network is worse."""

    compression: float | None
    speedup: float | None
    speedup_over_eager: float | None
    metric_drop: float | None
    speedup_spread: Annotated[Interval | None, Field(description="p10 and p90 over the rounds")] = None


class Channels(ReportPart):
    """The range of every channel; where there are many, of runs of neighbouring channels, all but the last equal."""

    count: Annotated[int, Field(ge=1)]
    low: Annotated[tuple[float, ...], Field(min_length=1)]
    high: Annotated[tuple[float, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _pairs(self) -> "Channels":
        if len(self.low) != len(self.high) or len(self.low) > self.count:
            raise ValueError(f"{len(self.low)} lower and {len(self.high)} upper ends of {self.count} channels")
        return self


class Histogram(ReportPart):
    """The values of one site: `bins` are the edges, one more than `counts`; `thresholds` by estimator."""

    site: str
    bins: tuple[float, ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]
    thresholds: dict[str, Interval] = {}  # noqa: RUF012 - pydantic copies it
    channels: Channels | None = None

    @model_validator(mode="after")
    def _edges(self) -> "Histogram":
        rising = all(a < b for a, b in zip(self.bins, self.bins[1:], strict=False))
        if len(self.bins) != len(self.counts) + 1 or not self.counts or not rising:
            raise ValueError(
                f"histogram of {self.site!r}: {len(self.bins)} edges for {len(self.counts)} counts: "
                "edges must rise and be one more than counts"
            )
        return self

    def __hash__(self) -> int:  # a dict has none
        return hash((self.site, self.bins, self.counts))


class Layer(ReportPart):
    """One layer: its planned and executed precision, and the SQNR of its output in dB.

    `sqnr_db` is local (only this layer quantized, exact inputs), `accumulated_sqnr_db` that of the whole network up to
    this layer; both are None for a layer without error or signal, which has no such ratio. `weight_format` is
    None without a weight, and for kinds that stay in float; `weight_bytes` is None for a weight computed at run time,
    and shared weights in float count once. `note` names the rule of a fallback. `inputs` are the layers, or inputs of
    the network, whose values it reads; `reads` the sites of `histograms` that it reads; `weights` the float weights,
    with the range that each estimator would choose for all of them together; `milliseconds` its time in one call by the
    engine's own profile, None if unknown or part of another operator.
    """

    name: str
    op: str
    planned: Precision
    executed: Precision | None
    weight_format: str | None
    sqnr_db: float | None
    accumulated_sqnr_db: float | None
    weight_bytes: Bytes | None
    note: str | None = None
    inputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    weights: Histogram | None = None
    milliseconds: Milliseconds | None = None


class Audit(ReportPart):
    """One operator of the compiled model, as the engine reports it, with its time in one call if it is known."""

    name: str
    op: str
    planned: str | None
    executed: str
    note: str | None = None
    milliseconds: Milliseconds | None = None


class CheckedValue(ReportPart):
    """One value between the engine's operators, compared with its simulation from the engine's own inputs.

    `ops` are the operators between the two, the last one first. `largest` is the largest difference, in codes (of 8
    bits over its range, for a value in float); `beyond` the share of values beyond the engine's tolerance.
    """

    name: str
    ops: tuple[str, ...]
    verdict: Annotated[
        Literal["planned", "float", "other", "unchecked"],
        Field(description="planned: within tolerance; float: executed in float; other: executed in other numbers"),
    ]
    largest: Annotated[float, Field(ge=0)]
    beyond: Share
    note: str | None = None


class OneStep(ReportPart):
    """The one-step check. `tolerance`: the number of codes by which an operator may differ, as stated by the engine."""

    tolerance: Annotated[float, Field(ge=0)]
    steps: tuple[CheckedValue, ...]


class CalibrationSummary(ReportPart):
    """Whether the calibration data is adequate. `drift`: how much ranges still changed in its second half."""

    adequate: bool
    drift: float | None = None
    notes: tuple[str, ...] = ()


class Timings(ReportPart):
    """Seconds per step; 0 for a step that was not needed, None for `train` in a recipe without it."""

    capture: Seconds | None
    calibrate: Seconds | None
    solve: Seconds | None
    train: Seconds | None = None
    compile: Seconds | None
    measure: Seconds | None

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> "Timings":
        """Those of a run."""
        needed = (name for name, field in cls.model_fields.items() if field.is_required() or name in seconds)
        return cls(**{name: round(seconds.get(name, 0.0), 3) for name in needed})


class Report(Shown, ReportPart):
    """All measurements. Every null must be explained by a warning that names its dotted path."""

    schema_version: Literal[1] = SCHEMA_VERSION
    headline: str | None = None
    task: str
    recipe: str
    engine: str
    environment: Environment
    seed: int
    samples: Samples
    metric: Metric
    original: Original
    original_eager: Eager
    compressed: Compressed
    ratios: Ratios
    layers: tuple[Layer, ...]
    audit: tuple[Audit, ...] = ()
    one_step: OneStep | None = None
    histograms: tuple[Histogram, ...] = ()
    calibration: CalibrationSummary | None = None
    prunings: tuple[Pruning, ...] = ()
    zeros: Zeros | None = None
    pairs: tuple[Pair, ...] = ()
    trainings: tuple[Training, ...] = ()
    contract: Contract | None = None
    timings_s: Timings
    peak_memory_bytes: Bytes | None
    warnings: tuple[str, ...]

    @model_validator(mode="after")
    def _explained(self) -> "Report":
        missing = missing_explanations(self.model_dump())
        if missing:
            raise ValueError(
                f"null without a warning that explains it: {', '.join(missing)}: "
                "add tersor.measure.unknown(path, reason) to warnings"
            )
        return self

    def to_json(self) -> str:
        """The text of `report.json`; energy is omitted if it could not be read."""
        data = self.model_dump(mode="json")
        for part in ("original", "compressed"):
            if data[part]["energy_joules"] is None:
                del data[part]["energy_joules"]
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: Path | str) -> Report:
    """Read a `report.json`, or the one in a folder; raises TersorError if it is missing, malformed or too new."""
    path = in_folder(Path(path), "report.json", TersorError)
    what = f"{path}: not a report of schema version {SCHEMA_VERSION}"
    remedy = "compress again, or read it with the version of tersor that wrote it"
    found = read_json(path, TersorError, "pass a folder that `compress` wrote")
    return checked(Report, found, what, TersorError, remedy)


def json_schema() -> str:
    """The JSON Schema of `report.json`, as text."""
    return json.dumps(Report.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False) + "\n"
