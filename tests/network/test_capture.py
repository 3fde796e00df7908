"""Capture keeps the function, the names and the ties, for every batch size."""

import pytest
import torch
from torch import nn

from tersor.errors import CaptureError
from tersor.network.capture import capture
from tersor.network.network import op_name
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm
from tersor.network.rewrites.fold_pad import FoldPad
from tersor.network.rewrites.hoist import HoistActivations


class InPlace(nn.Module):
    def forward(self, x):
        y = x * 2
        z = y
        y.relu_()
        y += 1
        return z


class ThroughView(nn.Module):
    def forward(self, x):
        y = x * 1
        y[:, 0] += 1
        return y


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x):
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1).view(len(x) * 3, 4)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


@pytest.mark.parametrize(("model", "shape"), [(InPlace(), (1, 4)), (ThroughView(), (1, 4)), (FixedBatch(), (1, 2, 4))])
def test_same_function_for_any_batch(model, shape):
    network = capture(model.eval(), (torch.zeros(shape),))
    assert network.dynamic_batch
    for batch in (1, 3, 5):
        x = torch.randn(batch, *shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(network(x), model(x.clone()))


def test_tied_weights_stay_tied():
    network = capture(Tied().eval(), (torch.zeros(1, 4),))
    assert sum(name.endswith("weight") for name, _ in network.tensors()) == 1


def test_keyword_inputs_and_several_outputs():
    class Two(nn.Module):
        def forward(self, a, b):
            return {"sum": a + b, "product": a * b}

    network = capture(Two().eval(), {"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)})
    a, b = torch.randn(3, 2), torch.randn(3, 2)
    total, product = network(a=a, b=b)
    assert network.input_names == ("a", "b")
    torch.testing.assert_close(total, a + b)
    torch.testing.assert_close(product, a * b)


def test_training_mode_is_refused():
    with pytest.raises(CaptureError, match="eval"):
        capture(nn.Linear(2, 2).train(), (torch.zeros(1, 2),))


@pytest.mark.filterwarnings("ignore")
def test_control_flow_on_data_names_the_line():
    with pytest.raises(CaptureError, match=r"test_capture\.py:\d+.*x\.sum\(\) > 0"):
        capture(Branches().eval(), (torch.zeros(1, 2),))


def _settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    return model.eval()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_folding_batchnorm_leaves_the_function(groups, bias, kind):
    torch.manual_seed(groups)
    model = _settled(nn.Sequential(kind(4, 8, 3, groups=groups, bias=bias), nn.BatchNorm2d(8), nn.ReLU()))
    x = torch.randn(3, 4, 9, 9)
    folded = FoldBatchNorm()(capture(model, (x[:1],)))
    assert "batch_norm" not in [op_name(n) for n in folded.operators()]
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("pad", "folded"), [((1, 1, 2, 2), True), ((0, 1, 0, 1), False)])
def test_only_symmetric_padding_folds(pad, folded):
    model = nn.Sequential(nn.ZeroPad2d(pad), nn.Conv2d(2, 3, 3, padding=1)).eval()
    x = torch.randn(2, 2, 6, 7)
    network = FoldPad()(capture(model, (x,)))
    assert ("pad" not in [op_name(n) for n in network.operators()]) == folded
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x))


def test_activation_moves_before_concatenation():
    class Fire(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)

        def forward(self, x):
            return torch.relu(torch.cat([self.a(x), self.b(x)], 1))

    model, x = Fire().eval(), torch.randn(2, 2, 4, 4)
    network = HoistActivations()(capture(model, (x,)))
    assert [op_name(n) for n in network.operators()][-1] == "cat"
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x))


class Remembers(nn.Module):
    """As a language model of transformers: without a word, it gives back a cache as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, cache=None, use_cache=None):
        y = self.layer(x)
        return (y, object()) if use_cache is None else (y, y + 1) if use_cache else (y,)


@pytest.mark.parametrize("example", [(torch.zeros(1, 4),), {"x": torch.zeros(1, 4)}])
def test_no_cache_is_captured_and_the_notes_say_so(example):
    model, x = Remembers().eval(), torch.randn(3, 4)
    network = capture(model, example)
    assert torch.equal(network(x), model.layer(x))
    assert network.dynamic_batch
    assert network.input_names == ("x",)
    assert "use_cache=False" in " ".join(network.notes)


def test_a_cache_that_is_asked_for_stays():
    network = capture(Remembers().eval(), {"x": torch.zeros(1, 4), "use_cache": True})
    assert len(network(torch.zeros(2, 4))) == 2
    assert not network.notes


def test_a_batchnorm_that_was_functionalized_has_one_traced_value():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.bn(x)
            y[:, 0] += 1.0  # a write through a view, which needs functionalization
            return y

    network = capture(Net().eval(), (torch.randn(2, 4, 3, 3),))
    (node,) = [n for n in network.operators() if op_name(n) == "batch_norm"]
    assert node.meta["val"].shape[1:] == (4, 3, 3)
