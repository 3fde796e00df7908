"""Every entry of METRICS keeps the same promises, and a new one costs a function and an entry."""

import math

import pytest
import torch
from parts import task_of

import tersor
from tersor import metrics
from tersor.errors import MetricError
from tersor.measure.formatting import is_fraction
from tersor.metrics import METRICS, MetricInfo, known_metric

SCORES = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
LABELS = [0, 1, 2, 0]
SERIES = [1.0, 2.0, 3.0, 5.0]
# For each metric two answers, the first without an error, and what was wanted.
ANSWERS = {
    "hits": (SCORES, SCORES.roll(1, 1), LABELS),
    "top_k": (SCORES, SCORES.roll(1, 1), LABELS),
    "f1": ([1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]),
    "pearson": (SERIES, SERIES[::-1], SERIES),
    "spearman": (SERIES, SERIES[::-1], SERIES),
    "perplexity": (40 * SCORES, SCORES, LABELS),
    "bits_per_character": (40 * SCORES, SCORES, LABELS),
    "word_error": (["the cat sat"], ["the mat"], ["the cat sat"]),
    "word_accuracy": (["a", "b"], ["a", "c"], [["a"], ["b", "d"]]),
}


def value(name: str, answer: object) -> float:
    """The metric of one answer, as a task's evaluation gives it."""
    return float(torch.as_tensor(METRICS[name].function(answer, ANSWERS[name][2])).double().mean())


def test_every_metric_is_public_and_tried_here():
    assert METRICS.keys() == ANSWERS.keys() == set(metrics.__all__) - {"METRICS", "MetricInfo", "known_metric"}
    for name, entry in METRICS.items():
        assert entry.function is getattr(metrics, name)
        assert known_metric(name.replace("_", " ").capitalize()) is entry


@pytest.mark.parametrize("name", METRICS)
def test_an_answer_without_error_has_the_best_value_and_errors_go_the_other_way(name):
    right, wrong, _ = ANSWERS[name]
    assert value(name, right) == pytest.approx(METRICS[name].best, abs=1e-6)
    assert (value(name, wrong) < value(name, right)) == METRICS[name].higher_is_better
    assert value(name, wrong) != value(name, right)


@pytest.mark.parametrize("name", METRICS)
def test_units_are_what_reports_print(name):
    right, wrong, _ = ANSWERS[name]
    fraction = METRICS[name].unit == "fraction"
    assert is_fraction(name, value(name, right), value(name, wrong)) == fraction
    if fraction:
        assert 0 <= value(name, wrong) <= value(name, right) <= 1


@pytest.mark.parametrize("name", METRICS)
def test_nothing_to_judge_is_refused(name):
    with pytest.raises(MetricError):
        METRICS[name].function([], [])


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_a_source(name):
    assert len(METRICS[name].source) > 8
    assert math.isfinite(METRICS[name].best)


def largest_error(said, wanted):
    return max(abs(a - b) for a, b in zip(said, wanted, strict=True))


def test_a_toy_has_its_direction_and_unit_by_its_entry_alone(monkeypatch, quick_report):
    monkeypatch.setitem(METRICS, "largest_error", MetricInfo(largest_error, False, 0.0, "fraction", "this test"))
    assert is_fraction("largest error", 0.25)
    task = task_of(torch.nn.Sequential(torch.nn.Linear(8, 4)), (8,))
    task = tersor.Task("toy", task.model, task.example, task.calibration, lambda predict: 0.25, metric="largest error")
    report = tersor.compress(task, "int8-weight", "torch", progress=False).report
    assert "largest error 25.00 % -> 25.00 %" in report.headline
    assert any("largest error is better when lower" in warning for warning in report.warnings)
