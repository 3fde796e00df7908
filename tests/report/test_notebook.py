"""What a notebook shows of a value: the tables of the terminal as HTML, and bars without ipywidgets."""

import itertools

import pytest
import torch
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sample_report import resnet20

import tersor
from tersor.pipeline.progress import Stages
from tersor.report.notebook.fragment import ROWS, html_of


def test_a_line_says_what_it_is_and_what_it_gained():
    line = repr(resnet20())
    assert line.startswith("<Report resnet20-cifar10 · int8-static · openvino: 338 kB, 3.3x smaller, 2.1x faster")
    assert line.endswith("top-1 accuracy 91.70 % -> 91.68 %>")
    assert "NOT AS HOPED" not in repr(resnet20(**{"ratios.speedup": 0.8, "ratios.speedup_spread": (0.7, 0.9)}))


def test_a_plan_of_modules_is_a_list_that_shows_itself():
    plan = tersor.dynamic_plan(torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.Linear(4, 2)))
    assert isinstance(plan, list)
    assert repr(plan) == "<ModulePlans of 2 modules: 1 float, 1 quantized>"
    assert plan._repr_html_().count("<tr ") == 2


@pytest.mark.parametrize("rows", [ROWS, ROWS + 1])
def test_a_table_keeps_its_columns_and_scrolls_if_it_is_long(rows):
    table = Table("layer")
    table.add_column("dB", justify="right")
    for k in range(rows):
        table.add_row(Text(f"layer {k}"), f"{k}", style="yellow" if k == 0 else "")
    text = html_of(Group("", table))
    assert text.count('<th scope="col"') == 2
    assert text.count("text-align:right") == rows + 1
    assert text.count("#d97706") == 1
    assert ("max-height" in text) == (rows > ROWS)


def test_text_keeps_its_style_and_line_breaks_and_the_rest_is_preformatted():
    text = html_of(Group(Text("\na <b>\nc", style="bold"), Text.assemble(("warning: ", "yellow"), "x"), Panel("p")))
    assert '<span style="font-weight:600">a &lt;b&gt;<br>c</span>' in text
    assert ">warning: </span>" in text
    assert "│ p" in text


def test_a_notebook_has_bars_without_ipywidgets_and_nothing_is_left_of_them(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data.get("text/html", ""))

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(display, "display", lambda data, raw, display_id: Handle())
    clock = itertools.count(100.0, 0.001)  # no pause of the machine counts
    monkeypatch.setattr("tersor.pipeline.progress.time.monotonic", lambda: next(clock))
    with Stages() as stages:
        with stages.stage("a", "unknown <b>"):
            pass
        with stages.stage("a", "known", 4) as stage:
            stage.at(2)
            stages._bars._shown = 0.0  # as if time had gone by
            stage.advance()
            stage.say("too soon")
    assert "unknown &lt;b&gt; <progress></progress>" in shown[0]
    assert '<progress max="4" value="3"></progress> 3/4' in shown[-2]
    assert len(shown) == 4
    assert shown[-1] == ""
    assert stages.seconds["a"] > 0


def test_no_bars_where_they_are_not_wanted(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with Stages(False) as stages, stages.stage("a", "text", 4) as stage:
        stage.advance()
    assert stages._bars._output is None
