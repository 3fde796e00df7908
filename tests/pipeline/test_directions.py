"""Directions, ties and known ranges that decide what a report says: a metric that is better when lower among them."""

from dataclasses import replace

import pytest
import torch
from parts import task_of
from torch import nn

import tersor
from tersor.network.sites import Plan, Site
from tersor.numerics import QuantSpec
from tersor.pipeline.graph.inputs import fitted_input_ranges
from tersor.recipe import Quantization, Recipe

COARSE = Quantization(format="int2", granularity="tensor")


def regression(better_when_coarse: bool = False) -> tersor.Task:
    """A regression judged by squared errors; its targets are its own outputs, or those of its coarse weights."""
    task = task_of(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)), (8,))
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(3))
    model = task.model
    if better_when_coarse:
        model = tersor.compress(task, coarse(), "torch", report=False, progress=False)
    with torch.no_grad():
        targets = model(x)
    return tersor.Task(
        "regression",
        task.model,
        task.example,
        task.calibration,
        evaluate=lambda predict: (predict(x) - targets).square().flatten(),
        metric="squared error",
        higher_is_better=False,
    )


def coarse() -> Recipe:
    return Recipe(weights=COARSE, activations=Quantization(format="fp32"), bias_correction=False, equalize="off")


def test_a_loss_that_rises_is_a_drop_and_the_headline_says_worse(quick_report):
    report = tersor.compress(regression(), coarse(), "torch", progress=False).report
    assert report.compressed.metric > report.original.metric == pytest.approx(0, abs=1e-9)
    assert report.ratios.metric_drop == pytest.approx(report.compressed.metric - report.original.metric)
    low, high = report.compressed.metric_interval
    assert 0 < low < report.ratios.metric_drop < high
    assert "squared error is worse by" in report.headline


@pytest.mark.slow
def test_a_loss_that_falls_is_a_gain_and_the_headline_says_nothing_is_worse(quick_report):
    report = tersor.compress(regression(better_when_coarse=True), coarse(), "torch", progress=False).report
    assert report.compressed.metric < report.original.metric
    assert report.ratios.metric_drop < 0
    assert report.compressed.metric_interval[1] < 0
    assert "worse by" not in report.headline


@pytest.mark.slow
def test_a_direction_that_is_not_the_metrics_own_is_a_warning(quick_report):
    for metric, count in (("perplexity", 1), ("squared error", 0)):
        task = replace(regression(), metric=metric, higher_is_better=True)
        warnings = tersor.compress(task, coarse(), "torch", progress=False).report.warnings
        assert sum("perplexity is better when lower" in warning for warning in warnings) == count


def fitted(values: torch.Tensor, low: float, high: float) -> tuple[float, float]:
    """The range of a network's input after fitting it to the values."""
    network = tersor.compress(
        task_of(nn.Sequential(nn.Linear(1, 2)), (1,)), "int8-weight", "torch", report=False, progress=False
    ).network
    node = next(n.name for n in network.graph.nodes if n.op == "placeholder")
    site = Site(node, node, "activation", QuantSpec("uint8", symmetric=False), Quantization(), node)
    return fitted_input_ranges(network, Plan((site,), ()), {node: (low, high)}, (values.reshape(-1, 1),))[node]


def test_an_input_range_that_fits_its_grid_is_kept():
    """Values that are codes already have no error: a wider range can only be as good, and a tie keeps the range."""
    assert fitted(torch.arange(16) / 255, 0.0, 1.0) == (0.0, 1.0)


def test_an_input_range_is_widened_where_every_value_lies_half_way_between_two_codes():
    pixels = torch.arange(16) * 16 / 127.5 - 1
    low, high = fitted(pixels, -1.0, 1.0)
    assert (low, high) != (-1.0, 1.0)
    assert low == -1.0
    assert 1.0 < high <= 1.0 + 2 * 2 / 255


def test_a_gain_of_chance_does_not_widen_an_input_range():
    """Uniform noise has the same error in any range; less than 2 % is no reason to move."""
    noise = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    noise[0], noise[1] = 0.0, 1.0
    assert fitted(noise[:16].repeat(1), 0.0, 1.0)[0] == 0.0
    assert fitted(noise, 0.0, 1.0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("activation", "high"), [(nn.Sigmoid(), 255 / 256), (nn.Softmax(-1), 255 / 256), (nn.Hardsigmoid(), 1.0)]
)
def test_the_range_of_a_bounded_activation_is_known_and_not_calibrated(activation, high):
    """Calibrated on small values alone, the quantizer behind it still spans all that it can give."""
    task = task_of(nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 2)), (4,))
    task.model[0].weight.data *= 0.01
    network = tersor.compress(task, "int8-static", "torch", report=False, progress=False).network
    source = next(n for n in network.operators() if n.name in ("sigmoid", "softmax", "hardsigmoid"))
    quantizer = next(iter(source.users))
    scale, zero_point = (network.tensor(a) for a in quantizer.args[1:3])
    assert float(scale) == pytest.approx(high / 255)
    assert float(zero_point) == 0
