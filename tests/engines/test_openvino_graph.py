"""Graphs that go to OpenVINO's frontend as they stand: the same numbers as by decomposition, under our names."""

import pytest
import torch
from parts import Lambda, flat, task_of
from torch import nn

import tersor
from tersor.engines import ENGINES
from tersor.engines.openvino import graph, spelling
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


def refused(network):
    raise AssertionError("it took the long way")


@pytest.mark.parametrize("kind", ["plain", "spelled"])
def test_every_operator_of_the_tables_is_read_without_decomposing(kind, network, images, monkeypatch):
    net, inputs = {"plain": (network, IDS), "spelled": (images, torch.randn(3, 2, 8, 8))}[kind]
    named = {op_name(n) for n in net.operators()}
    # These are what quantization puts in; the networks of test_recurrent and test_openvino hold them.
    plain = spelling._PLAIN - {"quantize_rows", "dequantize", "fake_quantize"}
    apart = {"conv1d", "conv2d", "conv3d", "pad", "adaptive_avg_pool2d", "flatten"}
    assert plain | {"split", "contiguous"} == named if kind == "plain" else apart <= named
    assert apart | {"split"} == {*spelling._SPELLED, "flatten"}
    monkeypatch.setattr(graph, "_decomposed", refused)
    runner = openvino.compile(net, threads=1)
    for x in (inputs, inputs[:1]):
        for found, wanted in zip(flat(runner(x)), flat(net(x)), strict=True):
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


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
    "flattening all": lambda m, x: (x * 2).sum(0, keepdim=True).flatten(),
}


SLOW = {"parts of given sizes", "a reflecting pad", "several pooled positions", "padding as a word", "flattening some"}


@pytest.mark.parametrize("form", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FORMS])
def test_other_forms_take_the_long_way(form, monkeypatch):
    torch.manual_seed(0)
    net = Lambda(FORMS[form], conv=nn.Conv2d(2, 3, 3, padding="same"))
    network = capture(net.eval(), (torch.zeros(2, 2, 6, 6),))
    taken, decomposed = [], graph._decomposed
    monkeypatch.setattr(graph, "_decomposed", lambda network: taken.append(form) or decomposed(network))
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(openvino.compile(network, threads=1)(x), network(x), rtol=0, atol=1e-5)
    assert taken == [form]


def test_the_network_itself_keeps_its_names(network):
    before = [n.name for n in network.graph.nodes]
    graph.readable(network)
    assert [n.name for n in network.graph.nodes] == before
