"""Replaced modules inside their parents: who calls them, and what of the rest is copied."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import tersor
from tersor.errors import TaskError
from tersor.network.quantized import QuantizedLinear
from tersor.network.swap import replace_modules

X = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
PADDED = torch.arange(9) >= torch.tensor([[9], [6]])
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # of the float encoder
FIRST_FLOAT = tersor.Recipe(
    name="first",
    weights=tersor.Quantization(format="int8", granularity="channel"),
    activations=tersor.Quantization(range="runtime", granularity="token", symmetric=False),
    bias_correction=False,
    rules=(tersor.Rule(layer="layers.0.*", keep="fp32"),),
)


def quantized(net, recipe="int8-dynamic"):
    return tersor.quantize_dynamic(net.eval(), recipe, progress=False)


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def calls(monkeypatch):
    """The quantized linear layers that are called, in order."""
    found, forward = [], QuantizedLinear.forward

    def counted(self, input):
        found.append(self)
        return forward(self, input)

    monkeypatch.setattr(QuantizedLinear, "forward", counted)
    return found


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=not options).eval()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("mask", [None, PADDED])
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu"}])
def test_encoders_call_their_layers(mode, mask, options, calls):
    net = encoder(**options)
    small = quantized(net)
    with mode():
        found = small(X, src_key_padding_mask=mask)
    assert calls == [m for m in small.modules() if isinstance(m, QuantizedLinear)]
    assert len(calls) == 6
    real = ~PADDED if mask is not None else slice(None)
    with torch.no_grad():
        assert apart(found[real], net(X, src_key_padding_mask=mask)[real]) < 0.02


def test_an_encoder_whose_first_layer_stays_float_calls_the_others(calls):
    net = encoder()
    with torch.no_grad():
        found = quantized(net, FIRST_FLOAT)(X, src_key_padding_mask=PADDED)
        assert apart(found[~PADDED], net(X, src_key_padding_mask=PADDED)[~PADDED]) < 0.02
    assert len(calls) == 4


def test_layers_of_the_fused_path_alone(calls):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    with torch.no_grad():
        assert apart(quantized(layer)(X), layer(X)) < 0.02
    assert len(calls) == 2
    assert layer.activation_relu_or_gelu == 1, "the model itself is not changed"


def test_attention_reads_a_projection_that_stayed_float():
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, batch_first=True), "head": nn.Linear(16, 4)}).eval()
    small = quantized(net)
    with torch.no_grad():
        assert torch.equal(small["attention"](X, X, X)[0], net["attention"](X, X, X)[0])


def weight_norm(layer):
    return nn.utils.weight_norm(layer)


COMPUTED = {
    "weight_norm": pytest.param(weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")),
    "spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5) or layer,
    "parametrized": nn.utils.parametrizations.weight_norm,
}


@pytest.mark.parametrize("norm", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("called", [False, True])
def test_layers_with_computed_weights_are_copied_and_named(norm, called):
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Conv1d(9, 8, 3)), nn.ReLU(), norm(nn.Linear(14, 14)), nn.Linear(14, 3)).eval()
    if called:
        net(X)
    reasons = {e.name: e.reason for e in tersor.dynamic_plan(net)}
    assert all("its weight is computed by" in reasons[name] for name in ("0", "2"))
    small = quantized(net)
    assert isinstance(small[3], QuantizedLinear)
    assert apart(small(X).detach(), net(X).detach()) < 0.02


class Remembering(nn.Module):
    """It keeps results that have a history, in containers too."""

    def __init__(self):
        super().__init__()
        self.cell, self.kept = nn.Linear(16, 16), {"steps": []}

    def forward(self, x):
        self.last = self.cell(x)
        self.kept["steps"].append((self.last, "done"))
        return self.last


def test_kept_results_are_copied_by_value_and_stay_one():
    net = Remembering()
    expected = net(X).detach()
    small = quantized(net)
    assert small.kept["steps"][0][0] is small.last is not net.last
    assert torch.equal(small.last, expected)
    assert not small.last.requires_grad


@pytest.mark.parametrize("where", ["", "1"])
def test_what_cannot_be_copied_is_named(where):
    net = nn.Sequential(nn.Linear(16, 4), nn.ReLU())
    net.get_submodule(where).guard = {"lock": threading.Lock()}
    with pytest.raises(TaskError, match=rf"cannot be copied \({where}\.?guard, TypeError.*remove what holds it"):
        quantized(net)


def test_layers_without_a_weight_yet_are_named():
    net = nn.ModuleList([nn.LazyLinear(4), nn.LazyConv1d(4, 3), nn.Linear(4, 4)])
    assert ["before its first call" in e.reason for e in tersor.dynamic_plan(net)] == [True, True, False]


def test_replacing_alone_switches_nothing():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert replace_modules(layer, {layer.dropout: nn.Identity()}).activation_relu_or_gelu == 1
