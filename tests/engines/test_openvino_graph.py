"""Graphs that go to OpenVINO's frontend as they stand: the same numbers as by decomposition, under our names."""

import logging

import pytest
import torch
from parts import Lambda, flat, task_of
from torch import nn

import tersor
from tersor.engines import ENGINES
from tersor.engines.openvino import graph, lowering, spelling
from tersor.network.capture import capture
from tersor.network.network import Network, op_name

openvino = ENGINES["openvino"]
IDS = torch.tensor([[1, 2, 6], [0, 0, 3], [5, 4, 4]])


def everything(m, ids):
    """All operators that are read as they stand, in the forms that they take, each beside others."""
    x = m.words(ids)  # [n, 3, 6]
    n = x.shape[0]
    ahead = torch.cat([torch.zeros(n, 1, 6), x[:, :-1], torch.zeros_like(x)[:, -1:]], 1).sum(1, keepdim=True)
    parts = torch.stack([part.tanh() for part in x.split(2, -1)], 1).select(-1, 1)
    gates = torch.sub(x.sigmoid(), m.up(x).relu(), alpha=2).softmax(-1) * torch.full((n, 1, 6), 0.5)
    last = x[torch.arange(n), ids.argmax(1)].unsqueeze(1) + torch.arange(6)
    return ahead + gates + 1.5, parts, m.up(last), m.up(x[:, 1].contiguous()), x.argmax(-1), ids + n * 2


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return capture(Lambda(everything, words=nn.Embedding(7, 6), up=nn.Linear(6, 6)).eval(), (IDS[:2],))


def layers(m, x):
    """All operators that are spelled differently, in the forms that are taken."""
    y = m.conv(nn.functional.pad(x, (1, 0, 0, 1)))  # [n, 4, 5, 5]
    z = m.wide(y).flatten(1)
    depth = m.deep(y.unsqueeze(1)).relu()
    row = m.row(x.select(2, 0)).flatten(1)
    return nn.functional.adaptive_avg_pool2d(y, 1).flatten(1), z, depth, row, nn.functional.pad(row, (2, 1), value=3)


@pytest.fixture(scope="module")
def images() -> Network:
    torch.manual_seed(0)
    parts = {
        "conv": nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(1, 2), dilation=(2, 1)),
        "wide": nn.Conv2d(4, 4, 1, groups=2, bias=False),
        "deep": nn.Conv3d(1, 2, 2, padding=1),
        "row": nn.Conv1d(2, 3, 3, padding=1, groups=1),
    }
    return capture(Lambda(layers, **parts).eval(), (torch.zeros(2, 2, 8, 8),))


def usual(m, x):
    """Operators of vision networks and Transformers, most of them in two forms."""
    curves = [nn.functional.gelu(x), nn.functional.gelu(x, approximate="tanh"), nn.functional.elu(x, 0.5)]
    curves += [nn.functional.leaky_relu(x), nn.functional.leaky_relu(x, 0.3), nn.functional.silu(x) / (x * x + 1)]
    curves += [nn.functional.hardswish(x * 4), nn.functional.hardsigmoid(x * 4) / 3, nn.functional.relu6(x * 9)]
    curves += [nn.functional.hardtanh(x, -1, 0.5), x.clamp(-1, 0.5), x.clamp(min=0.1), m.drop(x)]
    pools = [nn.functional.max_pool2d(x, 3, 2, 1), nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)]
    pools += [nn.functional.avg_pool2d(x, 2), nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)]
    larger = [nn.functional.interpolate(x, scale_factor=2), nn.functional.interpolate(x, (5, 7))]
    larger += [nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), nn.functional.pixel_shuffle(x, 2)]
    larger += [m.up(x), m.up_grouped(x), m.up_row(x.select(2, 0)), m.up_deep(x.unsqueeze(2))]
    n = x.shape[0]
    tokens = torch.cat([m.first.expand(n, -1, -1), x.reshape(n, 4, -1).transpose(1, 2)], 1)
    heads = m.norm(tokens).view(n, -1, 2, 2).permute(0, 2, 1, 3)
    seen = nn.functional.scaled_dot_product_attention(heads, heads, heads)
    return [*curves, *pools, *larger, seen, nn.functional.layer_norm(tokens, (4,)), x.mean((2, 3)), x.mean(1, True)]


@pytest.fixture(scope="module")
def common() -> Network:
    torch.manual_seed(0)
    parts = {
        "drop": nn.Dropout(),
        "norm": nn.LayerNorm(4),
        "up": nn.ConvTranspose2d(4, 3, 2, 2),
        "up_grouped": nn.ConvTranspose2d(4, 6, 3, (2, 1), (1, 0), output_padding=(1, 0), groups=2, bias=False),
        "up_row": nn.ConvTranspose1d(4, 2, 3, dilation=2),
        "up_deep": nn.ConvTranspose3d(4, 2, 2),
    }
    net = Lambda(usual, **parts)
    net.first = nn.Parameter(torch.randn(1, 1, 4))
    return capture(net.eval(), (torch.zeros(2, 4, 8, 8),))


def refused(network):
    raise AssertionError("it took the long way")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["network", "images", "common"])
def test_operators_of_the_tables_are_read_without_decomposing(kind, request, monkeypatch):
    net = request.getfixturevalue(kind)
    inputs = IDS if kind == "network" else torch.randn(3, *net.example[0].shape[1:])
    monkeypatch.setattr(graph, "decomposed", refused)
    monkeypatch.setattr(lowering, "decomposed", refused)
    runner = openvino.compile(net, threads=1)
    for x in (inputs, inputs[:1]):
        for found, wanted in zip(flat(runner(x)), flat(net(x)), strict=True):
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_these_networks_hold_every_operator_of_the_tables(network, images, common):
    named = {op_name(n) for net in (network, images, common) for n in net.operators()}
    # These are what quantization puts in; the networks of test_recurrent and test_openvino hold them.
    plain = spelling._PLAIN - {"quantize_rows", "dequantize", "fake_quantize"}
    assert named == plain | spelling._SPELLED.keys() | {"flatten", "contiguous", "dropout"}


@pytest.mark.slow
def test_both_ways_give_the_same_numbers_and_names(monkeypatch):
    torch.manual_seed(0)
    net = Lambda(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.GRU(128, 128, batch_first=True), head=nn.Linear(128, 4))
    task = task_of(net.eval(), (2, 128), batches=1, batch=2)
    network = tersor.compress(task, "int8-dynamic", "torch", report=False, progress=False).network
    assert {"quantize_rows", "dequantize"} < {op_name(n) for n in network.operators()}
    direct = openvino.compile(network, threads=1)
    monkeypatch.setattr(spelling, "_PLAIN", frozenset())
    decomposed = openvino.compile(network, threads=1)
    for batch in (1, 3):
        x = torch.randn(batch, 2, 128, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(direct(x), decomposed(x), rtol=0, atol=1e-6)
    linears = {n.name for n in network.operators() if op_name(n) == "linear"}
    for runner in (direct, decomposed):
        found = {n: row.precision for row in runner.executed() for n in row.nodes if n in linears}
        assert found == dict.fromkeys(linears, "int8")


FORMS = {
    "uneven parts": lambda m, x: torch.cat(x.split(4, -1)[::-1], -1),
    "parts of given sizes": lambda m, x: torch.cat(x.split([2, 4], -1)[::-1], -1),
    "a reflecting pad": lambda m, x: nn.functional.pad(x, (1, 1, 2, 0), mode="reflect"),
    "several pooled positions": lambda m, x: nn.functional.adaptive_avg_pool2d(x, (2, 3)),
    "padding as a word": lambda m, x: m.conv(x),
    "flattening within": lambda m, x: x.flatten(2) + 1,
    "flattening some": lambda m, x: x.flatten(1, 2) + 1,
    "a normalization of groups": lambda m, x: nn.functional.group_norm(x, 2),
    "flattening all": lambda m, x: (x * 2).sum(0, keepdim=True).flatten(),
}


QUICK = "uneven parts"


@pytest.mark.parametrize("form", [pytest.param(f, marks=[pytest.mark.slow] * (f != QUICK)) for f in FORMS])
def test_other_forms_take_the_long_way(form, monkeypatch):
    torch.manual_seed(0)
    net = Lambda(FORMS[form], conv=nn.Conv2d(2, 3, 3, padding="same"))
    network = capture(net.eval(), (torch.zeros(2, 2, 6, 6),))
    taken, decomposed = [], graph.decomposed
    for module in (graph, lowering):
        monkeypatch.setattr(module, "decomposed", lambda network: taken.append(form) or decomposed(network))
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(openvino.compile(network, threads=1)(x), network(x), rtol=0, atol=1e-5)
    assert taken == [form]


def test_what_the_frontend_refuses_as_captured_takes_the_long_way(monkeypatch):
    monkeypatch.setattr(spelling, "_PLAIN", spelling._PLAIN | {"softplus"})
    network = capture(nn.Softplus().eval(), (torch.zeros(2, 3),))
    x, root = torch.randn(3, 3), logging.root
    before = root.level, list(root.filters), list(root.handlers)
    torch.testing.assert_close(openvino.compile(network, threads=1)(x), network(x), rtol=0, atol=1e-5)
    assert (root.level, root.filters, root.handlers) == before


def test_the_network_itself_keeps_its_names(network):
    before = [n.name for n in network.graph.nodes]
    graph.readable(network)
    assert [n.name for n in network.graph.nodes] == before
