"""Rewrites leave the float output as it was, on networks drawn at random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import Lambda, conv, warmed
from torch import nn
from torch.nn import functional as F

from tersor.network.capture import capture
from tersor.network.network import op_name
from tersor.network.rewrites.decompose import Decompose
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm
from tersor.network.rewrites.fold_constants import FoldConstants
from tersor.network.rewrites.fold_pad import FoldPad
from tersor.network.rewrites.global_pool import GlobalPool
from tersor.network.rewrites.hoist import HoistActivations

REWRITES = (
    FoldConstants(),
    FoldBatchNorm(),
    FoldPad(),
    HoistActivations(),
    GlobalPool(),
    Decompose(frozenset({"silu"})),
)
SHAPE = (4, 9, 8)


class Drawn(nn.Module):
    """Layers as drawn, each kind in its usual company; every second one is read by a shortcut too."""

    def __init__(self, kinds: list[tuple[str, int, bool, bool]]) -> None:
        super().__init__()
        self.kinds = kinds
        self.layers = nn.ModuleList(self._layer(*kind) for kind in kinds)

    def _layer(self, kind: str, groups: int, bias: bool, norm: bool) -> nn.Module:
        cls = nn.ConvTranspose2d if kind == "transposed" else nn.Conv2d
        pad = [nn.ZeroPad2d(1)] if kind == "padded" else []
        layer = cls(4, 4, 3, padding=0 if pad else 1, groups=groups, bias=bias)
        if kind == "normed":
            layer = nn.utils.parametrizations.weight_norm(layer)
        return nn.Sequential(*pad, layer, *([nn.BatchNorm2d(4)] if norm else []))

    def forward(self, x):
        for layer, (_, groups, bias, _) in zip(self.layers, self.kinds, strict=True):
            y = layer(x)
            x = F.silu(torch.cat([y, x], 1))[:, 2:6] if groups == 2 else F.relu(y) + x if bias else F.relu6(y)
        return F.avg_pool2d(x, (SHAPE[1], SHAPE[2]))


KIND = st.tuples(
    st.sampled_from(["plain", "transposed", "padded", "normed"]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=12)
@given(kinds=st.lists(KIND, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_all_together_leave_the_function(kinds, seed):
    torch.manual_seed(seed)
    model = warmed(Drawn(kinds), SHAPE)
    x = torch.randn(3, *SHAPE)
    network = capture(model, (x[:1],))
    for rewrite in REWRITES:
        network = rewrite(network)
    left = {op_name(n) for n in network.operators()}
    assert not left & {"batch_norm", "pad", "_weight_norm", "silu", "avg_pool2d"}
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x), rtol=1e-3, atol=1e-4)


def test_a_rewrite_changes_no_other_network():
    model = warmed(nn.Sequential(conv(4, 4), nn.Conv2d(4, 2, 1)), SHAPE)
    network = capture(model, (torch.zeros(1, *SHAPE),))
    before = [op_name(n) for n in network.operators()]
    weights = {name: t.clone() for name, t in network.tensors()}
    for rewrite in REWRITES:
        rewrite(network)
    assert [op_name(n) for n in network.operators()] == before
    assert all(torch.equal(t, weights[name]) for name, t in network.tensors())


def test_a_shared_layer_folds_once_for_all_its_uses():
    body = conv(4, 4)
    model = warmed(Lambda(lambda m, x: m.body(x) - m.body(x.flip(2)), body=body), SHAPE)
    network = capture(model, (torch.zeros(1, *SHAPE),))
    folded = FoldBatchNorm()(network)
    assert [op_name(n) for n in folded.operators()].count("conv2d") == 2
    assert "batch_norm" not in {op_name(n) for n in folded.operators()}
    assert sum(t.ndim == 4 for _, t in folded.tensors()) == 1, "the weight is still shared"
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("why", ["two norms", "read twice", "statistics of the batch"])
def test_what_must_not_be_folded_is_not(why):
    layer, a, b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    if why == "two norms":
        model = Lambda(lambda m, x: m.a(m.layer(x)) + m.b(m.layer(x.flip(2))), layer=layer, a=a, b=b)
    elif why == "read twice":
        model = Lambda(lambda m, x: m.a(y := m.layer(x)) * y, layer=layer, a=a)
    else:
        model = Lambda(lambda m, x: m.a(m.layer(x)), layer=layer, a=nn.BatchNorm2d(4, track_running_stats=False))
    model = warmed(model, SHAPE)
    folded = FoldBatchNorm()(capture(model, (torch.zeros(1, *SHAPE),)))
    assert "batch_norm" in {op_name(n) for n in folded.operators()}
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_only_weights_are_folded_not_every_constant():
    model = Lambda(lambda m, x: m.c(x) * torch.arange(8.0), c=nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)))
    network = FoldConstants()(capture(model.eval(), (torch.zeros(1, *SHAPE),)))
    assert [op_name(n) for n in network.operators()] == ["conv2d", "arange", "mul"]


@pytest.mark.parametrize(
    ("pool", "is_global"),
    [
        (nn.AvgPool2d((9, 8)), True),
        (nn.AvgPool2d(1000, ceil_mode=True), True),
        (nn.AvgPool2d((9, 4)), False),
        (nn.AvgPool2d(9, padding=4), False),
        (nn.AvgPool2d((9, 8), divisor_override=5), False),
    ],
)
def test_only_a_window_over_the_whole_map_is_global(pool, is_global):
    x = torch.randn(2, *SHAPE)
    network = GlobalPool()(capture(pool.eval(), (x[:1],)))
    assert (op_name(network.operators()[0]) == "adaptive_avg_pool2d") == is_global
    torch.testing.assert_close(network(x), pool(x))
