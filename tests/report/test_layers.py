"""What the page says of one layer: a rule that changes it and no other, its numbers, its place in the picture."""

import re
from itertools import pairwise

import pytest
import torch
from sample_report import layers, resnet20

import tersor
from tersor.engines import engine as find_engine
from tersor.engines.base import Timed
from tersor.recipe import Recipe
from tersor.report.advice import next_step, rule_of
from tersor.report.graph import layout
from tersor.report.html import diagnose
from tersor.report.layers import network, rows

NAMES = ("conv1", "blocks.0.conv[1]", "a*b?c", "1e3", "yes", "- x: y", "#", "", "é\u202e\x1b", "[!a]", "'\"")


@pytest.mark.parametrize(
    ("planned", "recipe"),
    [("int8", "int8-static"), ("int4", "a recipe of mine"), ("fused", "sparse-2:4"), ("fp32", "fp16")],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_rule_loads_and_matches_its_layer_only(name, planned, recipe):
    report = resnet20(recipe=recipe, layers=[dict(layers()[0], name=name, planned=planned)])
    text = rule_of(report, report.layers[0])
    assert text.isascii()
    rule = Recipe.from_yaml(text).quantize.rules[-1]
    assert rule.matches(name, "conv2d")
    assert not rule.matches(name + "2", "conv2d")
    assert rule.changes


def test_the_second_line_says_what_to_do():
    def said(**changes):
        report = resnet20(**changes)
        return next_step(report, diagnose(report))

    weak = [dict(x, sqnr_db=12.0) if x["name"] == "linear" else x for x in layers()]
    fallen = [dict(x, executed="fp32") if x["name"] == "linear" else x for x in layers()]
    slow = {"ratios.speedup": 0.8, "ratios.speedup_spread": (0.7, 0.9)}
    assert said() == "Ship it: the files in this folder run in openvino without Tersor"
    assert "start with linear (12.0 dB)" in said(layers=weak)
    assert said(engine="torch").startswith("Choose an engine that computes in integers")
    assert said(layers=fallen).startswith("Another granularity or engine")
    assert said(layers=fallen, **slow).startswith("Another granularity or engine")
    assert said(**{"ratios.speedup_spread": (0.9, 2.5)}).startswith("Ship it for its size")


def test_rows_are_sorted_and_know_what_they_read():
    found = rows(resnet20())
    assert [row.layer.sqnr_db for row in found] == sorted(x["sqnr_db"] for x in layers())
    first = next(row for row in found if row.at == 0)
    assert first.reads == ((0, "input"),)
    assert dict(first.facts)["Reads"] == "input"


def test_nodes_of_a_column_do_not_touch_and_lines_lead_to_the_right():
    edges = [(k, k + 1) for k in range(60)] + [(k, k + 3) for k in range(0, 57, 3)] + [(0, 55)]
    found = layout(edges, 61)
    assert len(set(found.nodes)) == 61
    for column in range(found.columns):
        heights = sorted(y for x, y in found.nodes if x == column)
        assert all(b - a >= 0.999 for a, b in pairwise(heights))
    for line in found.lines:
        assert [x for x, _ in line] == list(range(line[0][0], line[-1][0] + 1))


def test_a_network_with_too_many_long_lines_is_drawn_straight():
    found = layout([(a, b) for a in range(60) for b in range(a + 1, 60)], 60)
    assert {len(line) for line in found.lines} == {2}


def test_a_report_without_connections_has_no_picture():
    assert network(resnet20(layers=[dict(x, inputs=()) for x in layers()])) is None
    assert len(re.findall("<a ", str(network(resnet20())))) == 22


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_report_knows_connections_values_and_times(name):
    if find_engine(name).version() is None:
        pytest.skip(f"{name} is not installed")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3), torch.nn.Flatten(),
        torch.nn.Linear(256, 4),
    ).eval()  # fmt: skip
    data = [(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    done = tersor.compress(
        tersor.Task("tiny", net, data[0], lambda: data), engine=name, threads=1, evaluate=False, progress=False
    )
    found = {layer.name: layer for layer in done.report.layers}
    assert isinstance(done.deployed.runner, Timed)
    (relu,) = found["2"].inputs
    assert found[relu].op == "relu"
    assert found["4"].inputs == ("2",)  # behind Flatten
    assert found["2"].reads == (relu,)
    assert sum(found["2"].weights.counts) == 16 * 8 * 9
    assert found["2"].weights.channels.count == 16
    assert {"chosen", "minmax", "mse"} <= found["2"].weights.thresholds.keys()
    assert found["2"].milliseconds > 0
    assert any(row.milliseconds for row in done.report.audit)
