"""The report's schema: it round-trips, refuses what is malformed, and lets no null go unexplained."""

import json

import pytest
from pydantic import ValidationError
from sample_report import METRIC_PATHS, UNKNOWN_METRIC, resnet20

from tersor.errors import TersorError
from tersor.measure import Report, json_schema, read_report, unknown
from tersor.measure.nulls import missing_explanations

PROMISED = {
    "": "schema_version task recipe engine environment seed samples metric original original_eager "
    "compressed ratios layers timings_s peak_memory_bytes warnings",
    "environment": "cpu isa threads precision versions",
    "samples": "calibration evaluation",
    "metric": "name higher_is_better",
    "original": "bytes metric latency_ms memory_bytes",
    "original.latency_ms": "median p10 p90",
    "original_eager": "latency_ms",
    "compressed": "bytes metric metric_interval metric_simulated agreement latency_ms memory_bytes",
    "ratios": "compression speedup speedup_over_eager metric_drop",
    "timings_s": "capture calibrate solve compile measure",
    "layers.0": "name op planned executed weight_format sqnr_db accumulated_sqnr_db weight_bytes",
}


def _at(data, path):
    for step in filter(None, path.split(".")):
        data = data[int(step)] if step.isdigit() else data[step]
    return data


@pytest.mark.parametrize("path", PROMISED)
def test_json_holds_every_promised_field(path):
    data = json.loads(resnet20().to_json())
    assert set(PROMISED[path].split()) <= set(_at(data, path))


def test_round_trip_through_a_file(tmp_path):
    report = resnet20()
    (tmp_path / "report.json").write_text(report.to_json(), encoding="utf-8")
    assert read_report(tmp_path) == report
    assert read_report(tmp_path / "report.json") == report


def test_energy_is_absent_where_it_could_not_be_read():
    assert "energy_joules" not in json.loads(resnet20().to_json())["original"]
    measured = resnet20(**{"original.energy_joules": 0.5})
    assert json.loads(measured.to_json())["original"]["energy_joules"] == 0.5


@pytest.mark.parametrize(
    "path",
    [
        "compressed.agreement",
        "original.memory_bytes",
        "peak_memory_bytes",
        "timings_s.solve",
        "original.latency_ms",
    ],
)
def test_a_null_needs_a_warning_that_names_it(path):
    with pytest.raises(ValidationError, match=f"null without a warning.*{path}"):
        resnet20(**{path: None})
    assert resnet20(**{path: None, "warnings": [unknown(path, "of a test")]}).warnings


def test_a_warning_about_a_longer_path_explains_nothing():
    warnings = [
        unknown("compressed.metric_interval", "one number"),
        "see compressed.metric.foo and xcompressed.metric",
    ]
    data = {"compressed": {"metric": None}, "warnings": warnings}
    assert missing_explanations(data) == ["compressed.metric"]


def test_one_warning_covers_all_layers():
    layers = [dict(layer, executed=None) for layer in resnet20().model_dump()["layers"]]
    report = resnet20(layers=layers, warnings=[unknown("layers.executed", "of a test")])
    assert {layer.executed for layer in report.layers} == {None}


def test_a_layer_without_error_or_signal_needs_no_warning():
    layers = [dict(layer, sqnr_db=None, accumulated_sqnr_db=None) for layer in resnet20().model_dump()["layers"]]
    assert resnet20(layers=layers).warnings == resnet20().warnings


def test_a_report_without_evaluation_is_possible():
    nothing = dict.fromkeys(METRIC_PATHS)
    assert "not measured" in resnet20(**nothing, warnings=[UNKNOWN_METRIC]).headline


@pytest.mark.parametrize(
    "change",
    [
        {"compressed.metric": float("nan")},
        {"ratios.speedup": float("inf")},
        {"compressed.agreement": 1.5},
        {"original.bytes": -1},
        {"schema_version": 2},
        {"colour": "red"},
        {"environment.threads": 0},
        {"layers": [dict(resnet20().layers[0].model_dump(), executed="int7")]},
        {"histograms": [{"site": "x", "bins": [0, 1], "counts": [1, 2]}]},
        {"histograms": [{"site": "x", "bins": [0, 1, 1], "counts": [1, 2]}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_malformed_reports_are_refused(change):
    with pytest.raises(ValidationError):
        resnet20(**change)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema_version": 99}', "\udcff"])
def test_a_file_that_is_no_report_is_named(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(TersorError, match=r"report\.json"):
        read_report(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TersorError, match="cannot be read"):
        read_report(tmp_path / "report.json")


def test_the_json_schema_is_the_reports():
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(Report.model_fields)
    assert set(schema["$defs"]["Layer"]["properties"]["planned"]["enum"]) == {
        "int4", "int8", "int16", "fp8", "fp16", "bf16", "fp32", "fused",
    }  # fmt: skip
