"""The terminal's report: everything that matters, worst layers first, nothing foreign interpreted."""

import io

import pytest
from rich.console import Console
from sample_report import METRIC_PATHS, UNKNOWN_METRIC, layers, resnet20

from tersor.report import html, print_report, text

EVIL = "[bold]conv[/bold]\x1b[31m\x1b]0;title\x07\n"


def test_the_first_line_is_the_headline_whatever_the_width():
    report = resnet20(**{"ratios.speedup": 0.8})
    for width in (40, 100, 200):
        assert text(report, width=width).splitlines()[0] == report.headline


@pytest.mark.parametrize(
    "words",
    ["1.10 MB", "338 kB", "3.3x smaller", "492 µs", "236 µs", "2.31 ms", "9.8x faster", "12.4 MB", "91.70 %",
     "91.68 %", "-0.02 points", "-0.11 to +0.15 points", "99.3 %", "2 threads", "avx512_vnni",
     "openvino 2026.4.1", "seed 0", "calibrated on 512 samples", "evaluated on 10000", "measure 21.4 s", "812 MB",
     "warning: the last calibration batch"],
)  # fmt: skip
def test_everything_that_matters_is_said(words):
    assert words in text(resnet20(), width=120)


@pytest.mark.parametrize("drop", [0.0, -0.0, 0.00001, -0.00001])
def test_no_difference_has_no_sign(drop):
    report = resnet20(**{"ratios.metric_drop": drop, "compressed.metric_interval": (-0.00002, 0.00003)})
    for said in (text(report), html(report)):
        assert "-0.00" not in said
        assert "+0.00" not in said
    assert " 0.00 points" in text(report)


def test_a_simulation_has_no_speed_and_no_fallback():
    changed = [dict(layer, executed="fp32") for layer in layers()]
    said = text(resnet20(engine="torch", layers=changed))
    assert "simulated" in said
    assert not any(word in said for word in ("faster", "slower", "speed-up", "not int8"))


def test_the_worst_layers_come_first_and_the_rest_is_summed_up():
    report = resnet20()
    lines = text(report, top=5).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("layer, worst first")) + 2
    worst = sorted(report.layers, key=lambda layer: layer.sqnr_db)[:5]
    assert [line.split()[0] for line in lines[start : start + 5]] == [layer.name for layer in worst]
    assert lines[start + 5].startswith("and 17 more: 17 int8") or "1 fused" in lines[start + 5]


def test_a_fallback_comes_before_the_worst_and_says_so():
    changed = layers()
    changed[5] = dict(changed[5], executed="fp32", sqnr_db=149.0)
    assert "fp32, not int8" in text(resnet20(layers=changed), top=1)


def test_five_hundred_layers_fit_a_screen():
    assert len(text(resnet20(layers=layers(500))).splitlines()) < 40


def test_higher_is_worse_is_signed_as_the_metric_moved():
    report = resnet20(**{
        "metric": {"name": "loss", "higher_is_better": False}, "original.metric": 2.0,
        "compressed.metric": 2.5, "ratios.metric_drop": 0.5,
    })  # fmt: skip
    assert "+0.5" in next(line for line in text(report).splitlines() if line.startswith("loss"))


def test_unknowns_are_called_so():
    nothing = dict.fromkeys(METRIC_PATHS)
    found = text(resnet20(**nothing, warnings=[UNKNOWN_METRIC]))
    assert found.splitlines()[0].endswith("top-1 accuracy not measured")
    assert "because the task has no evaluate" in " ".join(found.split())


def test_foreign_text_is_shown_not_interpreted():
    changed = [dict(layer, name=EVIL, op=EVIL, note=EVIL) for layer in layers()]
    report = resnet20(layers=changed, task=EVIL, recipe=EVIL, engine=EVIL, warnings=[EVIL])
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    print_report(report, console)
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]conv[/bold]" in shown
