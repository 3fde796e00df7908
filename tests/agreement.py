"""What compressing any network in OpenVINO must give."""

import torch
from parts import distance, draw, flat, plain, task_of
from torch import fx

import tersor
from tersor.engines import ENGINES
from tersor.network.network import Network, finish, op_name
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.audit import audit


def check(model, shape, falls_back=frozenset(), error=0.08, tolerance=0.3):
    """``error`` is what int8 may cost, ``tolerance`` the part of it by which the engine may differ."""
    torch.manual_seed(0)
    task = task_of(model, shape)
    done = tersor.compress(task, report=False, progress=False)
    inputs = draw((shape,), 5, 77)
    exact, engine = plain(task.model, *inputs), flat(done.runner(*inputs))
    simulated, executed = (flat(f(*inputs)) for f in (done.network, as_merged(done)))
    assert [x.shape for x in engine] == [x.shape for x in exact]
    for a, b, c, d in zip(exact, simulated, executed, engine, strict=True):
        passed_through = any(a.shape == x.shape and torch.equal(a, x) for x in inputs)
        assert (distance(b, a) > 0) != passed_through, "what is passed through is not rounded"
        assert distance(b, a) < error, "int8 keeps the function"
        assert distance(d, c) <= tolerance * distance(b, a) + 1e-5, "the engine computes what was simulated"
    for several, one in zip(engine, flat(done.runner(*(x[:1] for x in inputs))), strict=True):
        assert distance(one, several[:1]) < 0.05, "a batch of one takes another path in the engine"
    account = ENGINES["openvino"].audit(done.network, done.runner, inputs)
    assert {s.verdict for s in account.steps} == {"planned"}, [s for s in account.steps if s.verdict != "planned"]
    rows = audit(done.plan, account.executed)
    assert {r.layer.name for r in rows if r.fell_back} == set(falls_back)
    weighted = [r for r in rows if r.layer.weight_format is not None]
    assert weighted
    assert all(r.layer.planned == "int8" for r in weighted), "every layer has been planned in integers"


def as_merged(done: Compressed) -> Network:
    """The simulation without the one rounding that OpenVINO saves.

    A quantizer that comes first behind a convolution, a shortcut added in the same kernel and another quantizer behind
    the sum: the first of the two then only clips. A ReLU is part of it, other activation functions come before it.
    """
    network = done.network.edit()
    merged = [set(row.nodes) for row in done.runner.executed() if row.op == "Convolution"]
    for node in network.operators():
        if op_name(node) != "fake_quantize":
            continue
        source = node.all_input_nodes[0]
        layer = source.all_input_nodes[0] if op_name(source) == "relu" else source
        if any(layer.name in names and op_name(u) == "add" and u.name in names for names in merged for u in node.users):
            _only_clip(network, node)
    return finish(network)


def _only_clip(network: Network, quantizer: fx.Node) -> None:
    x, scale, zero_point, low, high, _ = quantizer.args
    bounds = [float((b - network.tensor(zero_point)) * network.tensor(scale)) for b in (low, high)]
    with network.graph.inserting_before(quantizer):
        clipped = network.graph.call_function(torch.ops.aten.clamp.default, (x, *bounds))
    quantizer.replace_all_uses_with(clipped)
    network.graph.erase_node(quantizer)
