"""Equalization and absorption: the function stays, the ranges become equal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tersor.network.capture import capture
from tersor.network.network import Network, bias_node, op_name, walk, weight_node
from tersor.network.rewrites.absorb import AbsorbBias
from tersor.network.rewrites.equalize import Equalize
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm
from tersor.network.rewrites.spaces import spaces
from tersor.observers import Statistics, observe


class Residual(nn.Module):
    """A stem and a block with a shortcut, each layer with a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.widen, self.narrow = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.narrow(torch.nn.functional.relu6(self.widen(x))))
        return self.head(x.mean((2, 3)))


def convolutions(*between: nn.Module, readers: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), *between, nn.Conv2d(6, 4, 3, padding=1))


NETWORKS = {
    "relu": lambda: convolutions(nn.ReLU()),
    "relu6": lambda: convolutions(nn.ReLU6()),
    "hardtanh": lambda: convolutions(nn.Hardtanh(0.0, 2.0)),
    "no activation": lambda: convolutions(),
    "leaky": lambda: convolutions(nn.LeakyReLU(0.1)),
    "prelu": lambda: convolutions(nn.PReLU(6)),
    "pools": lambda: convolutions(nn.ReLU6(), nn.MaxPool2d(2, 1, 1), nn.Dropout(), nn.AvgPool2d(2)),
    "padded": lambda: convolutions(nn.ReLU(), nn.ZeroPad2d((0, 1, 2, 0))),
    "reflected": lambda: convolutions(nn.ReLU(), nn.ReflectionPad2d(1)),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 1)
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False)
    ),
    "flattened": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU6(), nn.Linear(7, 5)),
    "residual": Residual,
}

LEFT_ALONE = {
    "sigmoid": lambda: convolutions(nn.Sigmoid()),
    "clamp from below 0": lambda: convolutions(nn.Hardtanh()),
    "padded with 1": lambda: convolutions(nn.ConstantPad2d(1, 1.0)),
    "every place a feature": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(216, 4)),
    "single layer": lambda: nn.Conv2d(3, 6, 3),
}


def made(build, seed: int = 0) -> nn.Module:
    """The network with weights whose channels differ by up to 1000 times, and a BatchNorm with a past."""
    torch.manual_seed(seed)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= 10 ** (3 * torch.rand(len(module.weight)) - 1.5).reshape(
                -1, *[1] * (module.weight.ndim - 1)
            )
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.1, 4)
            module.running_mean.normal_()
    return model


def inputs(seed: int = 1) -> torch.Tensor:
    return 3 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module) -> Network:
    return FoldBatchNorm()(capture(model, (inputs(),)))


def observed(network: Network, x: torch.Tensor) -> dict[str, Statistics]:
    """Statistics of all layers and adds."""
    seen: dict[str, Statistics] = {}

    def visit(node, value):
        if op_name(node) in ("conv2d", "linear", "add"):
            seen[node.name] = observe(None, value)

    walk(network, (x,), visit)
    return seen


def spread(network: Network) -> float:
    """The mean variance of log10 of the ranges of channels, over both sides of all spaces."""
    found = []
    for space in spaces(network):
        for layer in space.producers:
            found.append(network.tensor(weight_node(layer)).flatten(1).abs().amax(1))
        for layer in space.consumers:
            weight = network.tensor(weight_node(layer)).abs()[..., None]
            groups = space.channels // weight.shape[1]
            found.append(weight.flatten(2).amax(2).unflatten(0, (groups, -1)).amax(1).flatten())
    return float(torch.stack([ranges.log10().var() for ranges in found]).mean())


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() <= 1e-4 * a.abs().max()


@pytest.mark.parametrize("with_statistics", [False, True], ids=["weights", "and activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_function_stays_and_ranges_become_equal(name, with_statistics):
    network = captured(made(NETWORKS[name]))
    before, x = network(inputs()), inputs(2)
    equal = Equalize()(network, observed(network, x) if with_statistics else None)
    assert_same(network(x), equal(x))
    assert_same(before, equal(inputs()))
    assert torch.equal(before, network(inputs())), "the network that was given changed"
    # Far outside of what was observed, where every bound is reached.
    assert_same(network(100 * x), equal(100 * x))
    # Several layers that share one set of factors cannot all have their wish.
    assert spread(equal) < (1 if name == "residual" else 0.75) * spread(network)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_not_homogeneous_is_left_alone(name):
    network = captured(made(LEFT_ALONE[name]))
    assert spaces(network) == []
    equal = Equalize()(network)
    assert torch.equal(network(inputs()), equal(inputs()))


def test_bounds_of_relu6_are_reached_and_kept():
    network = captured(made(NETWORKS["relu6"]))
    hit: list[torch.Tensor] = []
    walk(network, (100 * inputs(),), lambda n, v: hit.append((v == 6).float().mean()))
    assert max(hit) > 0.2
    equal = Equalize()(network)
    assert [op_name(n) for n in equal.operators()] == ["conv2d", "relu", "minimum", "conv2d"]
    assert_same(network(100 * inputs()), equal(100 * inputs()))


def test_pair_meets_at_the_geometric_mean():
    """The paper's s = √(r¹r²)/r², up to the overall size, which is kept."""
    network = captured(made(NETWORKS["relu"]))
    first, second = (network.tensor(f"{k}.weight") for k in (0, 2))
    ranges = (first.flatten(1).abs().amax(1), second.abs().amax((0, 2, 3)))
    equal = Equalize()(network)
    first, second = (equal.tensor(f"{k}.weight") for k in (0, 2))
    after = (first.flatten(1).abs().amax(1), second.abs().amax((0, 2, 3)))
    expected = (ranges[0] * ranges[1]).sqrt()
    for values in after:
        ratio = values / expected
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)


def test_residual_stream_is_one_space():
    sizes = [(s.channels, len(s.producers), len(s.consumers)) for s in spaces(captured(made(Residual)))]
    # relu(stem) is read by the block and by the add; relu(sum) by the head.
    assert sorted(sizes) == [(8, 2, 2), (16, 1, 1)]


def test_observed_activations_hold_the_scales_back():
    """A channel with small weights and large values grows less where its values are known."""
    model = convolutions(nn.ReLU())
    with torch.no_grad():
        model[0].weight[0] *= 1e-2
        model[0].bias[0] = 50.0
    network = captured(model.eval())
    x = inputs()

    def imbalance(net: Network) -> float:
        peaks: list[torch.Tensor] = []
        walk(net, (x,), lambda n, v: peaks.append(v.amax((0, 2, 3))) if op_name(n) == "relu" else None)
        return float(peaks[0][0] / peaks[0].median())

    assert imbalance(Equalize()(network, observed(network, x))) < 0.5 * imbalance(Equalize()(network))


def test_dead_channels_pull_at_nobody():
    model = convolutions(nn.ReLU6())
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[:, 2] = 0
        model[0].weight[3] = 0
        model[2].weight[:, 3] = 0
    network = captured(model.eval())
    equal = Equalize()(network, observed(network, inputs()))
    assert all(bool(t.isfinite().all()) for _, t in equal.tensors())
    assert_same(network(inputs()), equal(inputs()))


def test_all_zero_layers_stay_zero():
    model = convolutions(nn.ReLU())
    for p in model.parameters():
        p.data.zero_()
    equal = Equalize()(captured(model.eval()))
    assert (equal(inputs()) == 0).all()


def test_shared_weights_are_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    assert spaces(captured(Twice().eval())) == []


def test_second_time_changes_little():
    """Capped channels can be scaled again, and are already equal."""
    network = captured(made(NETWORKS["depthwise"]))
    once = Equalize()(network)
    twice = Equalize()(once)
    assert len(spaces(once)) == len(spaces(network)) == 2
    assert_same(network(100 * inputs()), twice(100 * inputs()))
    for name, tensor in once.tensors():
        torch.testing.assert_close(twice.tensor(name), tensor, rtol=0.01, atol=1e-6)


def test_dynamic_batch_survives():
    network = captured(made(NETWORKS["relu6"]))
    equal = Equalize()(network)
    assert equal(inputs()[:1]).shape[0] == 1
    assert_same(equal(inputs())[:1], equal(inputs()[:1]))


@settings(max_examples=6)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(["depthwise", "groups", "residual"]))
def test_function_stays_for_any_weights(seed, name):
    network = captured(made(NETWORKS[name], seed))
    x = inputs(seed % 1000)
    assert_same(network(10 * x), Equalize()(network, observed(network, x))(10 * x))


# ---------------------------------------------------------------- absorption
def biased(*activation: nn.Module, padding: int = 0) -> nn.Module:
    """A pair whose first layer's channels are lifted far above zero, but for the last."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), *activation, nn.Conv2d(6, 4, 3, padding=padding)).eval()
    model[0].bias.data += torch.tensor([4.5, 4.5, 20.0, 4.4, 4.4, 0.0])
    model[0].weight.data *= 0.3
    return model


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()], ids=["relu", "relu6"])
def test_absorbed_constants_leave_the_function_on_observed_data(activation):
    network, x = captured(biased(activation)), inputs()
    seen = observed(network, x)
    absorbed = AbsorbBias()(network, seen)
    assert_same(network(x), absorbed(x))
    layer = absorbed.operators()[0]
    low = seen[layer.name].channels.min.clamp(min=0)
    if isinstance(activation, nn.ReLU6):
        low = low.clamp(max=6)
        cap = next(tensor for name, tensor in absorbed.tensors() if name.endswith("cap"))
        torch.testing.assert_close(cap.flatten(), 6 - low)
    change = network.tensor("0.bias") - absorbed.tensor(bias_node(layer))
    torch.testing.assert_close(change, low)
    assert (low > 1).sum() >= 4
    assert (low == 0).any()


def test_absorption_shrinks_the_activation():
    network, x = captured(biased(nn.ReLU())), inputs()
    seen = observed(network, x)
    absorbed = AbsorbBias()(network, seen)
    layer = network.operators()[0].name
    before, after = (s[layer].channels for s in (seen, observed(absorbed, x)))
    assert after.max.max() < 0.6 * before.max.max()
    assert (after.min >= before.min.clamp(max=0) - 1e-4).all()


@pytest.mark.parametrize(
    "model",
    [
        biased(nn.ReLU(), padding=1),  # the border would read c, not 0
        biased(nn.ReLU(), nn.ZeroPad2d(1)),
        biased(nn.LeakyReLU()),
        biased(),
    ],
    ids=["padding", "pad", "leaky", "no activation"],
)
def test_nothing_is_absorbed_where_it_would_not_be_exact(model):
    network = captured(model)
    absorbed = AbsorbBias()(network, observed(network, inputs()))
    assert torch.equal(network(inputs()), absorbed(inputs()))
    assert torch.equal(network.tensor("0.bias"), absorbed.tensor("0.bias"))


def test_nothing_is_absorbed_without_statistics():
    network = captured(biased(nn.ReLU()))
    assert torch.equal(network.tensor("0.bias"), AbsorbBias()(network).tensor("0.bias"))


def test_absorb_and_equalize_together():
    network, x = captured(biased(nn.ReLU6())), inputs()
    absorbed = AbsorbBias()(network, observed(network, x))
    both = Equalize()(absorbed, observed(absorbed, x))
    assert_same(network(x), both(x))
    assert [op_name(n) for n in both.operators()] == ["conv2d", "relu", "minimum", "conv2d"]


# ---------------------------------------------------------------- BatchNorm folded long ago
@pytest.mark.real
def test_mobilenet_v2_stays_the_same_function(shared):
    from benchmarks.tasks.networks import MobileNetV2, load

    model = load(MobileNetV2(), shared / "data/imagenet-nets/mobilenetv2_100.safetensors")
    network = capture(model, (torch.zeros(1, 3, 224, 224),))
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = observed(network, x)
    found = spaces(network)
    assert len(found) == 42
    assert max(len(s.producers) for s in found) == 4  # the residual stream of 64 channels
    absorbed = AbsorbBias()(network, seen)
    assert_same(network(x), absorbed(x))
    equal = Equalize()(absorbed, observed(absorbed, x))
    assert_same(network(x), equal(x))
    ranges = [n.tensor("blocks.0.depthwise.conv.weight").flatten(1).abs().amax(1) for n in (network, equal)]
    before, after = (r.max() / r.median() for r in ranges)
    assert after < 0.5 * before
