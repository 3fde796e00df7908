"""What the result is worth: latency, memory, size, metric, error per layer, energy, as one Report."""

from tersor.measure.latency import Ratio, interleave, ratio
from tersor.measure.metric import Judged, judge, paired_interval
from tersor.measure.schema import Latency, Report, json_schema, missing_explanations, read_report, unknown
from tersor.measure.size import shipped_bytes, shipped_files

__all__ = [
    "Judged",
    "Latency",
    "Ratio",
    "Report",
    "interleave",
    "json_schema",
    "judge",
    "missing_explanations",
    "paired_interval",
    "ratio",
    "read_report",
    "shipped_bytes",
    "shipped_files",
    "unknown",
]
