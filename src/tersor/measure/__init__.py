"""Measure the result (latency, memory, size, metric, error per layer, energy) as one Report."""

from tersor.engines.targets import exact_int8
from tersor.measure.agreement import Agreement, AgreementRecorder, prediction_agreement, same_inputs
from tersor.measure.energy import joules_per_call
from tersor.measure.environment import describe_environment
from tersor.measure.fidelity import SignalNoise, compare, sqnr_db
from tersor.measure.headline import Diagnosis, Problem, diagnose, with_headline
from tersor.measure.latency import Ratio, interleave, ratio
from tersor.measure.memory import Memory, measure_memory, peak_bytes, resident_bytes, shipped_bytes, shipped_files
from tersor.measure.metric import MetricResult, check_lengths, evaluate_metric, paired_interval
from tersor.measure.nulls import missing_explanations, unknown
from tersor.measure.perplexity import Comparison, Divergence, TextScore, comparison, divergence, perplexity
from tersor.measure.schema import Latency, Report, json_schema, read_report
from tersor.measure.windows import TextProtocol, Tokens, Windows, tokens_of, windows_of

__all__ = [
    "Agreement",
    "AgreementRecorder",
    "Comparison",
    "Diagnosis",
    "Divergence",
    "Latency",
    "Memory",
    "MetricResult",
    "Problem",
    "Ratio",
    "Report",
    "SignalNoise",
    "TextProtocol",
    "TextScore",
    "Tokens",
    "Windows",
    "check_lengths",
    "compare",
    "comparison",
    "describe_environment",
    "diagnose",
    "divergence",
    "evaluate_metric",
    "exact_int8",
    "interleave",
    "joules_per_call",
    "json_schema",
    "measure_memory",
    "missing_explanations",
    "paired_interval",
    "peak_bytes",
    "perplexity",
    "prediction_agreement",
    "ratio",
    "read_report",
    "resident_bytes",
    "same_inputs",
    "shipped_bytes",
    "shipped_files",
    "sqnr_db",
    "tokens_of",
    "unknown",
    "windows_of",
    "with_headline",
]
