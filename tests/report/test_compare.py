"""Runs side by side: the best is marked, what cannot be compared is said, and what is no report is refused."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sample_report import METRIC_PATHS, UNKNOWN_METRIC, latency, resnet20
from typer.testing import CliRunner

from tersor.cli import app
from tersor.errors import TersorError
from tersor.report import write_report
from tersor.report.compare import Comparison, Row, compared, page, side_by_side, table
from tersor.report.figures import Figure, figures
from tersor.report.scatter import plot

EVIL = '<script>alert(1)</script>\x1b[31m"'


@pytest.fixture
def saved(tmp_path):
    """A function that saves a report under a name and returns its folder."""

    def save(name, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_report(resnet20(**changes), folder)
        return folder

    return save


def shown(comparison: Comparison, width=120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(comparison))
    return console.file.getvalue()


def line(comparison, name):
    """The cells of a row as printed."""
    (found,) = [row for row in shown(comparison).splitlines() if row.startswith(name + "  ")]
    return found.removeprefix(name).split("  ")


def test_the_best_of_every_row_is_marked(saved):
    slow = saved("slow", **{"compressed.bytes": 300_000, "compressed.latency_ms": latency(4.0, 1)})
    fast = saved("fast", **{"compressed.bytes": 400_000, "compressed.latency_ms": latency(2.0, 1)})
    found = compared([slow, fast])
    assert found.runs == ("slow", "fast")
    assert not found.notes
    assert [cell.strip() for cell in line(found, "on disk") if cell.strip()] == ["300 kB *", "400 kB"]
    assert [cell.strip() for cell in line(found, "latency") if cell.strip()] == ["4.00 ms", "2.00 ms *"]
    best = {row.name: row.best() for row in found.rows}
    assert best["recipe"] == best["p10"] == best["agrees with FP32"] == frozenset()


@given(st.lists(st.one_of(st.none(), st.floats(0.001, 1000)), min_size=2, max_size=6), st.booleans())
def test_no_value_beats_a_marked_one(values, higher):
    row = Row("x", tuple(Figure("x", v, "ms", higher) for v in values))
    known = [v for v in values if v is not None]
    best = row.best()
    for k in best:
        assert values[k] is not None
        top = max(known) if higher else min(known)
        assert row.figures[k].text == Figure("x", top, "ms").text
    assert bool(best) == (len({Figure("x", v, "ms").text for v in known}) > 1)


def faster(value, spread):
    return {"ratios.speedup": value, "ratios.speedup_spread": spread}


def metric(value, interval):
    return {"compressed.metric": value, "compressed.metric_interval": interval, "ratios.metric_drop": 0.917 - value}


@pytest.mark.parametrize(
    ("name", "one", "two", "best"),
    [
        ("latency", {"compressed.latency_ms": latency(2.0, 1)}, {"compressed.latency_ms": latency(2.1, 1)}, set()),
        ("faster than FP32", faster(2.0, (1.9, 2.1)), faster(2.1, (2.0, 2.2)), set()),
        ("faster than FP32", faster(2.0, (1.9, 2.1)), faster(2.4, (2.3, 2.5)), {1}),
        ("faster than FP32", faster(0.5, (0.4, 0.6)), faster(0.8, (0.7, 0.9)), set()),  # the least slow
        ("top-1 accuracy", metric(0.916, (-0.001, 0.003)), metric(0.915, (0.0, 0.004)), set()),
        ("top-1 accuracy", metric(0.916, (-0.001, 0.003)), metric(0.9, (0.013, 0.021)), {0}),
        ("top-1 accuracy", metric(0.5, (0.4, 0.43)), metric(0.1, (0.8, 0.83)), set()),  # the least bad
        ("agrees with FP32", {"compressed.agreement": 0.993}, {"compressed.agreement": 0.992}, set()),
        ("agrees with FP32", {"compressed.agreement": 0.993}, {"compressed.agreement": 0.98}, {0}),
        ("memory", {"compressed.memory_bytes": 8_000_000}, {"compressed.memory_bytes": 8_100_000}, set()),
        ("memory", {"compressed.memory_bytes": 8_000_000}, {"compressed.memory_bytes": 6_000_000}, {1}),
        ("on disk", {"compressed.bytes": 2_000_000, "ratios.compression": 0.55},
         {"compressed.bytes": 3_000_000, "ratios.compression": 0.37}, set()),
        ("latency", {"engine": "torch", "compressed.latency_ms": latency(2.0, 1)},
         {"engine": "torch", "compressed.latency_ms": latency(4.0, 1)}, set()),
    ],
)  # fmt: skip
def test_only_a_merit_beyond_the_noise_is_marked(saved, name, one, two, best):
    found = compared([saved("one", **one), saved("two", **two)])
    assert {row.name: row for row in found.rows}[name].best() == best


def test_nothing_is_marked_where_runs_cannot_be_compared(saved):
    found = compared([saved("one", task="t", **{"compressed.bytes": 1}), saved("two")])
    assert found.notes
    assert not any(row.best() for row in found.rows)
    assert "*" not in shown(found)
    assert "★" not in page(found)


def test_another_task_metric_or_machine_is_said(saved):
    one = saved("one")
    two = saved(
        "two", **{"task": "bert", "metric.name": "loss", "metric.higher_is_better": False, "environment.threads": 7}
    )
    found = compared([one, two])
    assert [note.split(" (")[0] for note in found.notes] == [
        f"the runs differ in {what}" for what in ("task", "computed on", "metric")
    ]
    assert "two: bert" in found.notes[0]
    rows = {row.name: row for row in found.rows}
    assert rows["loss"].figures[0].text == "–"
    assert rows["loss"].best() == frozenset()
    assert shown(found).count("warning: ") == 3


def test_size_and_latency_stand_against_the_metric(saved, tmp_path):
    small = saved("small", **{"compressed.bytes": 100_000, **metric(0.9, (0.013, 0.021))})
    worse = saved("worse", **{"compressed.bytes": 400_000, **metric(0.85, (0.06, 0.07))})
    found = compared([saved("good"), small, worse])
    size, time = found.trade_offs()
    assert [size.names[k] for k in size.front()] == ["small", "good"]
    assert size.sentence() == "Best trade-offs of size on disk and top-1 accuracy (Pareto front): small, good"
    assert [time.names[k] for k in time.front()] == ["good"]
    text = page(found, tmp_path).partition("<script>")[0]
    assert text.count('<svg class="scatter"') == 2
    assert text.count('class="point best"') == 2 + 1
    assert text.count('class="front"') == 2
    assert text.count('class="spread"') == 3 + 2 * 3
    assert set(re.findall(r'href="([^"]*)"', text)) == {f"./{name}/report.html" for name in ("good", "small", "worse")}
    assert "[2]" in plot(size)
    assert " 3" in plot(size)
    assert "href" not in page(found).partition("<script>")[0]


def test_nothing_is_drawn_where_runs_cannot_be_compared(saved):
    found = compared([saved("one", task="t"), saved("two")])
    assert found.trade_offs() == []
    assert "<svg" not in page(found).partition("<script>")[0]


def test_a_link_is_relative_and_names_no_scheme(saved, tmp_path):
    one, two = saved("javascript:alert(1)"), saved("x/a b")
    text = page(compared([one, two]), tmp_path / "x")
    links = re.findall(r'href="([^"]*)"', text)
    assert set(links) == {"../javascript%3Aalert%281%29/report.html", "./a%20b/report.html"}


def test_what_one_run_does_not_know_is_a_dash(saved):
    nothing = dict.fromkeys(METRIC_PATHS)
    found = compared([saved("one"), saved("two", **nothing, warnings=[UNKNOWN_METRIC])])
    rows = {row.name: [f.text for f in row.figures] for row in found.rows}
    assert rows["top-1 accuracy"][1] == "–"
    neither = {"a": [Figure("energy", None)], "b": [Figure("energy", None), Figure("size", 1.0, "bytes")]}
    assert [row.name for row in side_by_side(neither).rows] == ["size"]


def test_a_run_that_was_not_judged_is_named_and_the_others_agree():
    judged = [Figure("evaluated on", "text b", must_match=True)]
    runs = {"a": judged, "b": [Figure("evaluated on", None, must_match=True)], "c": judged}
    assert side_by_side(runs).notes == ("evaluated on: unknown for b, whose report has no such figure",)
    (note,) = side_by_side({**runs, "d": [Figure("evaluated on", "text d", must_match=True)]}).notes
    assert note.startswith("the runs differ in evaluated on (a, c: text b; b: –; d: text d)")


def test_rows_of_another_kind_of_report_stand_where_they_stood_there():
    first = [Figure("task", "t"), Figure("on disk", 1.0, "bytes", False), Figure("accuracy", 0.5, "%", True)]
    other = [Figure("task", "t"), Figure("on disk", 2.0, "bytes", False), Figure("tokens/s", 3.0, "/s", True)]
    rows = side_by_side({"a": first, "b": other}).rows
    assert [row.name for row in rows] == ["task", "on disk", "tokens/s", "accuracy"]
    assert [f.text for f in rows[2].figures] == ["–", "3 /s"]
    assert rows[1].best() == {0}


def test_folders_of_the_same_name_are_told_apart(saved):
    one, two = saved("x/run"), saved("y/run")
    assert compared([one, two]).runs == (str(one), str(two))


def test_everything_a_report_says_of_a_run_has_its_direction():
    directions = {f.name: f.higher_is_better for f in figures(resnet20())}
    assert directions["on disk"] is directions["latency"] is directions["memory"] is False
    assert directions["faster than FP32"] is directions["top-1 accuracy"] is True
    assert directions["top-1 accuracy, FP32"] is directions["task"] is None


def test_the_page_escapes_and_marks(saved):
    found = compared([saved("one", recipe=EVIL), saved("two", **{"compressed.bytes": 1})])
    text = page(found)
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "<strong>1 B ★</strong>" in text
    assert "\x1b" not in shown(found)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"], "nothing to compare: .*a; pass two or more different folders"),
        (["a", "a"], "two or more different folders"),
        (["a", "nowhere"], "nowhere: cannot be read .*pass a folder"),
        (["a", "empty"], r"empty/report.json: cannot be read"),
        (["a", "cut"], r"cut/report.json is not valid JSON"),
    ],
)
def test_what_cannot_be_compared_is_refused(saved, tmp_path, names, words):
    saved("a")
    (tmp_path / "empty").mkdir()
    cut = saved("cut") / "report.json"
    cut.write_text(cut.read_text(encoding="utf-8")[:500], encoding="utf-8")
    with pytest.raises(TersorError, match=words):
        compared([tmp_path / name for name in names])


def test_the_command(saved, tmp_path):
    words = ["compare", saved("one"), saved("two", task="bert"), "--html", tmp_path / "new/page.html"]
    said = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert said.exit_code == 0
    assert "on disk" in said.output
    assert "warning: the runs differ in task" in said.output
    assert (tmp_path / "new/page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(TersorError, match="nothing to compare"):
        CliRunner().invoke(app, ["compare", str(tmp_path / "one")], catch_exceptions=False)
