"""One pass gathers what one big batch would, whatever the batches look like."""

import tracemalloc

import pytest
import torch
from parts import Lambda
from torch import nn

from tersor.engines import ENGINES
from tersor.errors import CalibrationError
from tersor.network.calibrate import calibrate
from tersor.network.capture import capture
from tersor.network.chunks import channels_last
from tersor.network.network import walk
from tersor.network.sites import plan
from tersor.recipe import int8_static

SHAPE = (3, 8, 8)


def _conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


def _planned(model, shape=SHAPE):
    network = capture(model.eval(), (torch.zeros(1, *shape),))
    return network, plan(network, int8_static().quantize, ENGINES["openvino"].policy())


def _calibrated(model, batches, mean_samples=0, shape=SHAPE):
    return _observed(*_planned(model, shape), [(b,) for b in batches], mean_samples)


def _observed(network, made, batches, mean_samples):
    return calibrate(network, made.sources(), batches, [s.node for s in made.weights()], mean_samples)


def _exact_means(model, x, shape=SHAPE):
    network, made = _planned(model, shape)
    values = {}
    walk(network, (x,), lambda node, value: values.__setitem__(node.name, value))
    last = {n.name: "linear" in n.name for n in network.operators()}
    return {
        s.node: v.double().flatten(0, -2).mean(0) if last[s.node] else v.double().transpose(0, 1).flatten(1).mean(1)
        for s in made.weights()
        if (v := values[s.node]) is not None
    }


@pytest.mark.parametrize("sizes", [(32,), (8, 8, 8, 8), (5, 20, 7), (31, 1)])
def test_ragged_batches_give_what_one_batch_gives(sizes):
    x = torch.randn(32, *SHAPE)
    whole, parts = (_calibrated(_conv(), b) for b in ([x], x.split(sizes)))
    assert parts.samples == 32
    for name, statistics in whole.statistics.items():
        assert parts.statistics[name].min == statistics.min
        assert parts.statistics[name].max == statistics.max
        assert parts.statistics[name].count == statistics.count


@pytest.mark.parametrize("sizes", [(32,), (5, 20, 7), (9, 9, 14)])
def test_means_are_of_exactly_the_first_samples(sizes):
    x = torch.randn(32, *SHAPE)
    found = _calibrated(_conv(), x.split(sizes), mean_samples=10)
    assert found.mean_samples == 10
    for name, mean in _exact_means(_conv(), x[:10]).items():
        torch.testing.assert_close(found.means[name], mean, rtol=1e-5, atol=1e-6)


def test_means_where_a_sample_is_many_rows():
    """Windows, patches and sequence-first layers: the first dimension of a value is not the batch."""
    model = Lambda(
        lambda m, x: m.last(torch.relu(m.first(x.reshape(-1, 4, 6))).reshape(x.shape[0], 3, -1).transpose(0, 1)),
        first=nn.Linear(6, 5),
        last=nn.Linear(20, 2),
    )
    x = torch.randn(14, 12, 6)
    found = _calibrated(model, x.split((4, 4, 6)), mean_samples=7, shape=(12, 6))
    for name, mean in _exact_means(model, x[:7], (12, 6)).items():
        torch.testing.assert_close(found.means[name], mean, rtol=1e-5, atol=1e-6)


def test_pictures_of_several_sizes():
    batches = [torch.randn(4, 3, 8, 8), torch.randn(4, 3, 12, 9), torch.randn(4, 3, 8, 8)]
    found = _calibrated(_conv(), batches, mean_samples=12)
    assert found.samples == 12
    assert found.mean_samples == 4, "means are of the samples of one shape that stand first"
    assert next(s for n, s in found.statistics.items() if "input" in n).count == sum(b.numel() for b in batches)


def test_a_value_that_is_not_finite_names_the_layer():
    class Diverges(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(torch.log(self.a(x) - 1e6))

    with pytest.raises(CalibrationError, match=r"log: .*[Nn]a[Nn]"):
        _calibrated(Diverges(), [torch.ones(2, *SHAPE)])


def test_a_batch_that_the_model_refuses_is_numbered():
    with pytest.raises(CalibrationError, match=r"batch 1 of shapes \[\(2, 5, 8, 8\)\]"):
        _calibrated(_conv(), [torch.zeros(2, *SHAPE), torch.zeros(2, 5, 8, 8)])


def test_memory_does_not_grow_with_the_number_of_batches():
    def peak(count):
        network, made = _planned(_conv())
        generator = torch.Generator().manual_seed(0)
        batches = ((torch.randn(16, *SHAPE, generator=generator),) for _ in range(count))
        tracemalloc.start()
        held = _observed(network, made, batches, 16).statistics
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python, sum(_tensor_bytes(s) for s in held.values())

    few, many = peak(4), peak(40)
    assert many[0] < 1.5 * few[0] + 100_000
    assert many[1] <= 1.5 * few[1]


def _tensor_bytes(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(map(_tensor_bytes, value))
    return sum(map(_tensor_bytes, vars(value).values())) if hasattr(value, "__dict__") else 0


def _viewed(m, x):
    n = x.shape[0]
    y = m.a(x)  # [n, 4, 6, 6]
    return m.b(y.view(n, 4, 36)), m.c(y + x[:, :1, 1:-1, 1:-1]), y.view(n, 2, 2, 36).permute(0, 2, 1, 3).sum(-1)


@pytest.mark.parametrize("written", [_viewed, lambda m, x: m.c(m.a(x)).as_strided((2, 3, 3), (108, 36, 7))])
def test_another_layout_of_the_weights_gives_the_same_values(written):
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv1d(4, 2, 1), "c": nn.Conv2d(4, 3, 1, groups=1)}
    network = capture(Lambda(written, **layers).eval(), (torch.zeros(2, *SHAPE),))
    x, tensors = torch.randn(2, *SHAPE), channels_last(network)
    assert bool(tensors) == (written is _viewed)
    assert all(torch.equal(t, network.tensor(name)) for name, t in tensors.items())
    for found, wanted in zip(walk(network, (x,), tensors=tensors), walk(network, (x,)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
