"""Graphs that go to OpenVINO's frontend as they stand: the same numbers as by decomposition, under our names."""

import pytest
import torch
from parts import Lambda, flat, task_of
from torch import nn

import tersor
from tersor.engines import ENGINES
from tersor.engines.openvino import graph
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


def refused(network):
    raise AssertionError("it took the long way")


def test_every_plain_operator_is_read_as_it_stands(network, monkeypatch):
    named = {op_name(n) for n in network.operators()}
    # These two are what quantization puts in; the networks of test_recurrent hold them.
    assert named == graph._PLAIN - {"quantize_rows", "dequantize"}
    monkeypatch.setattr(graph, "_decomposed", refused)
    runner = openvino.compile(network, threads=1)
    for ids in (IDS, IDS[:1]):
        for found, wanted in zip(flat(runner(ids)), flat(network(ids)), strict=True):
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
    monkeypatch.setattr(graph, "_PLAIN", frozenset())
    decomposed = openvino.compile(network, threads=1)
    for batch in (1, 3):
        x = torch.randn(batch, 2, 128, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(direct(x), decomposed(x), rtol=0, atol=1e-6)
    linears = {n.name for n in network.operators() if op_name(n) == "linear"}
    for runner in (direct, decomposed):
        found = {n: row.precision for row in runner.executed() for n in row.nodes if n in linears}
        assert found == dict.fromkeys(linears, "int8")


@pytest.mark.parametrize("form", [lambda x: x.split(4, -1), lambda x: x.split([2, 4], -1)])
def test_uneven_parts_take_the_long_way(form):
    network = capture(Lambda(lambda m, x: torch.cat(form(x)[::-1], -1)).eval(), (torch.zeros(1, 6),))
    x = torch.randn(3, 6)
    assert torch.equal(openvino.compile(network, threads=1)(x), network(x))


def test_the_network_itself_keeps_its_names(network):
    before = [n.name for n in network.graph.nodes]
    graph.readable(network)
    assert [n.name for n in network.graph.nodes] == before
