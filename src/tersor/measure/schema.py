"""The report as a value: what `report.json` holds, checked by pydantic on the way in and on the way out."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tersor.errors import TersorError

SCHEMA_VERSION = 1

Precision = Literal["int4", "int8", "int16", "fp8", "fp16", "bf16", "fp32", "fused"]
Bytes = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]


class ReportPart(BaseModel):
    """A piece of the report: immutable, no unknown keys, no NaN and no infinity (JSON has neither)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Latency(ReportPart):
    """Milliseconds of one call. `rounds` are the medians of the interleaved rounds, in the order they ran."""

    median: Milliseconds
    p10: Milliseconds
    p90: Milliseconds
    runs: Annotated[int, Field(ge=1)] = 1
    rounds: tuple[Milliseconds, ...] = ()


class Environment(ReportPart):
    """Where it was measured. `precision` is what the engine was pinned to for its float operators."""

    cpu: str | None
    isa: tuple[str, ...]
    threads: Annotated[int, Field(ge=1)]
    precision: str
    versions: dict[str, str]
    system: str = ""


class Samples(ReportPart):
    """How many samples calibration saw and how many the metric was taken over."""

    calibration: int | None
    evaluation: int | None


class Metric(ReportPart):
    """The judge. Accuracies are fractions: 0.917, not 91.7."""

    name: str
    higher_is_better: bool


class Original(ReportPart):
    """FP32 in the same engine. `memory_bytes`: the resident bytes that loading and calling it adds."""

    bytes: Bytes | None
    metric: float | None
    latency_ms: Latency | None
    memory_bytes: Bytes | None
    energy_joules: Annotated[float, Field(ge=0)] | None = None


class Eager(ReportPart):
    """The FP32 network as the user has it: eager PyTorch, same threads."""

    latency_ms: Latency | None


class Compressed(ReportPart):
    """The deployed network, in the engine. `metric_simulated` is the simulation's, for comparison only."""

    bytes: Annotated[Bytes | None, Field(description="every file that must be shipped")]
    metric: float | None
    metric_interval: Annotated[
        Interval | None,
        Field(description="paired 95 % interval of ratios.metric_drop: above 0 as a whole = truly worse"),
    ]
    metric_simulated: float | None
    agreement: Annotated[Share | None, Field(description="share of predictions equal to FP32's")]
    latency_ms: Latency | None
    memory_bytes: Bytes | None
    energy_joules: Annotated[float, Field(ge=0)] | None = None


class Ratios(ReportPart):
    """Original over compressed: above 1 is better. `metric_drop` is positive when the compressed is worse."""

    compression: float | None
    speedup: float | None
    speedup_over_eager: float | None
    metric_drop: float | None
    speedup_spread: Annotated[Interval | None, Field(description="p10 and p90 over the rounds")] = None


class Layer(ReportPart):
    """One layer: what was planned, what ran, and the signal-to-quantization-noise of its output in dB.

    `sqnr_db` is local (only this layer quantized, exact inputs), `accumulated_sqnr_db` that of the whole
    network up to here. `weight_format` and `weight_bytes` are None where there is no weight. `note` names the
    rule of a fallback.
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


class Audit(ReportPart):
    """One operator of the compiled model, by the engine's own account, in the engine's own words."""

    name: str
    op: str
    planned: str | None
    executed: str
    note: str | None = None


class Histogram(ReportPart):
    """What one site saw: `bins` are the edges, one more than `counts`; `thresholds` by estimator."""

    site: str
    bins: tuple[float, ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]
    thresholds: dict[str, Interval] = {}

    @model_validator(mode="after")
    def _edges(self) -> "Histogram":
        rising = all(a < b for a, b in zip(self.bins, self.bins[1:], strict=False))
        if len(self.bins) != len(self.counts) + 1 or not self.counts or not rising:
            raise ValueError(
                f"histogram of {self.site!r}: {len(self.bins)} edges for {len(self.counts)} counts; "
                "give rising edges, one more than counts"
            )
        return self


class Verdict(ReportPart):
    """Is the calibration data adequate? `drift`: how far ranges still moved in its second half."""

    adequate: bool
    drift: float | None = None
    notes: tuple[str, ...] = ()


class Timings(ReportPart):
    """Seconds each step took; a step that was not needed took 0."""

    capture: Seconds | None
    calibrate: Seconds | None
    solve: Seconds | None
    compile: Seconds | None
    measure: Seconds | None


# Null here means "there is none", not "unknown": no warning is owed.
_MAY_BE_ABSENT = re.compile(
    r"(\.energy_joules|\.note|^layers\.weight_(format|bytes)|^ratios\.speedup_spread|^audit\.planned|^headline)$"
    r"|^calibration(\.|$)"
)


class Report(ReportPart):
    """Everything that was measured. A null must be explained: some warning names its dotted path.

    >>> missing_explanations({"original": {"metric": None}, "warnings": []})
    ['original.metric']
    >>> missing_explanations({"original": {"metric": None},
    ...                       "warnings": [unknown("original.metric", "the task was not evaluated")]})
    []
    """

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
    histograms: tuple[Histogram, ...] = ()
    calibration: Verdict | None = None
    timings_s: Timings
    peak_memory_bytes: Bytes | None
    warnings: tuple[str, ...]

    @model_validator(mode="after")
    def _explained(self) -> "Report":
        missing = missing_explanations(self.model_dump())
        if missing:
            raise ValueError(
                f"null without a warning that says why: {', '.join(missing)}; "
                "add tersor.measure.unknown(path, reason) to warnings"
            )
        return self

    def to_json(self) -> str:
        """The text of `report.json`; energy is left out where it could not be read."""
        data = self.model_dump(mode="json")
        for part in ("original", "compressed"):
            if data[part]["energy_joules"] is None:
                del data[part]["energy_joules"]
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def unknown(paths: str | tuple[str, ...], reason: str) -> str:
    """The warning that a null owes its reader.

    >>> unknown("compressed.agreement", "the output is not a row of scores")
    'compressed.agreement: unknown, because the output is not a row of scores'
    """
    names = (paths,) if isinstance(paths, str) else paths
    return f"{', '.join(names)}: unknown, because {reason}"


class _Null(NamedTuple):
    path: str


def _nulls(value: Any, path: str) -> list[_Null]:
    if value is None:
        return [_Null(path)]
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _nulls(item, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list | tuple):
        return [found for item in value for found in _nulls(item, path)]
    return []


def missing_explanations(data: dict[str, Any]) -> list[str]:
    """The dotted paths (list positions left out) that are null and that no warning names."""
    text = "\n".join(str(warning) for warning in data.get("warnings", ()))
    paths = dict.fromkeys(null.path for null in _nulls(data, ""))
    owed = [path for path in paths if not _MAY_BE_ABSENT.search(path)]
    return [path for path in owed if not re.search(rf"(?<![\w.]){re.escape(path)}(?!\w|\.\w)", text)]


def read_report(path: Path | str) -> Report:
    """The report of a `report.json`, or of the folder that holds one.

    Raises TersorError when it is missing, no JSON, of another schema version or malformed.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TersorError(
            f"{path}: cannot be read ({error.strerror}); give a folder that `compress` wrote"
        ) from error
    except UnicodeDecodeError as error:
        raise TersorError(f"{path}: not UTF-8 text; compress again to get a fresh report") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the file"
        raise TersorError(
            f"{path}: not a report of schema version {SCHEMA_VERSION}: {where}: {first['msg']}; "
            "compress again, or read it with the version of tersor that wrote it"
        ) from error


def json_schema() -> str:
    """The JSON Schema of `report.json`, as text."""
    return json.dumps(Report.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False) + "\n"
