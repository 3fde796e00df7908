"""The numbers behind the advice: against brute force, and against the layer itself."""

import math

import pytest
import torch
from torch import nn

from tersor.measure.outliers import ENOUGH, LayerOutliers, columns, layer_outliers
from tersor.network.capture import capture
from tersor.network.network import WEIGHTED
from tersor.observers import observe


def layer_of(module, *shape):
    network = capture(module.eval(), (torch.zeros(2, *shape),))
    return network, next(n for n in network.operators() if n.target in WEIGHTED)


def record(**changes):
    reach = torch.tensor([1.0, 2.0, 3.0, 0.0, 40.0])
    numbers = {"kurtosis": 3.0, "row_ratio": 1.0, "tensor_db": 35.0, "smoothed_db": 36.0, "token_db": 37.0}
    values = {"name": "x", "op": "linear", "min": -reach, "max": reach / 2, "int16_db": 80.0}
    return LayerOutliers(**numbers | values | changes)


@pytest.mark.parametrize(
    ("tensor", "smoothed", "token", "advice"),
    [
        (30.0, 60.0, 60.0, "fine"),
        (29.0, 31.0, 31.5, "fine"),  # less than half a bit is to be won
        (25.0, 30.0, 40.0, "smooth"),
        (25.0, 29.0, 40.0, "token"),
        (13.0, 23.6, 22.1, "smooth"),
        (13.0, 12.0, 22.1, "token"),
        (13.0, None, None, "float"),
        (25.0, None, None, "fine"),
        (19.0, 19.5, 19.9, "float"),
    ],
)
def test_the_cheapest_that_suffices(tensor, smoothed, token, advice):
    assert record(tensor_db=tensor, smoothed_db=smoothed, token_db=token).advice == advice


def test_dead_channels_do_not_lower_the_median():
    found = record()
    assert (found.median, found.worst, found.channel_ratio, found.outlying) == (2.0, 4, 20.0, [4])
    dead = record(min=torch.zeros(3), max=torch.zeros(3))
    assert (dead.median, dead.channel_ratio, dead.outlying) == (0.0, 1.0, [])
    assert "channel 4 reaches 20 times the median channel; int8 has 35.0 dB" in str(found)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Conv2d(6, 4, 3, groups=2), (6, 5, 5)),
        (nn.Conv1d(6, 6, 3, groups=6), (6, 5)),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), (6, 5, 5)),
    ],
)
def test_a_channels_column_is_what_it_reaches(module, shape):
    """The power of a column is that of the output to an impulse in this channel, far from any border."""
    network, layer = layer_of(module, *shape)
    bare = module.double()
    bare.bias.data.zero_()
    for channel, power in enumerate(columns(network, layer).square().sum(0)):
        x = torch.zeros(1, *shape, dtype=torch.float64)
        x[(0, channel, *(2 for _ in shape[1:]))] = 1
        with torch.no_grad():
            assert math.isclose(bare(x).square().sum(), power, rel_tol=1e-6)


def test_the_estimate_is_the_layers_own_error():
    """Independent channels: what the estimate adds up is what the layer's output shows, row by row."""
    torch.manual_seed(0)
    network, layer = layer_of(nn.Linear(128, 512), 128)
    x = torch.randn(256, 128) * torch.where(torch.arange(128) % 9 == 0, 20.0, 1.0)
    found = layer_outliers(network, layer, observe(None, x, keep=256), None)
    weight = network.tensor(layer.args[1]).double()
    low, high = float(x.min()), float(x.max())
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    error = ((x / scale).round().add(zero).clamp(-128, 127).sub(zero) * scale - x).double() @ weight.T
    signal = (x - x.mean(0)).double() @ weight.T
    exact = 10 * (signal.square().sum(1) / error.square().sum(1)).log10().median()
    assert abs(found.tensor_db - exact) < 0.5
    assert found.smoothed_db is None
    assert abs(found.int16_db - found.tensor_db - 48) < 2  # eight bits


def test_smoothing_pays_for_what_its_weight_loses():
    torch.manual_seed(0)
    network, layer = layer_of(nn.Linear(64, 64), 64)
    loud = torch.where(torch.arange(64) == 3, 100.0, 1.0)
    seen = observe(None, torch.randn(2048, 64) * loud, keep=256)
    by_root, by_all = (layer_outliers(network, layer, seen, loud.double() ** a).smoothed_db for a in (0.5, 1.0))
    plain = layer_outliers(network, layer, seen, torch.ones(64).double())
    assert plain.smoothed_db == pytest.approx(plain.tensor_db)
    assert by_root > ENOUGH > plain.tensor_db
    # With all of the range in the weight the activations are perfect and the weight is not.
    assert by_all < by_root


def test_what_never_varies_has_nothing_to_lose():
    network, layer = layer_of(nn.Linear(4, 4), 4)
    constant = layer_outliers(network, layer, observe(None, torch.full((8, 4), 1.7), keep=256), None)
    assert (constant.tensor_db, constant.kurtosis, constant.advice) == (150.0, None, "fine")
    zero = layer_outliers(network, layer, observe(None, torch.zeros(8, 4), keep=256), None)
    assert (zero.tensor_db, zero.channel_ratio, zero.row_ratio) == (150.0, 1.0, 1.0)
