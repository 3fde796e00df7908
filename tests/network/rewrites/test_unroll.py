"""Recurrent layers written out in steps: PyTorch's own function, and the reason where they stay as they are."""

from types import SimpleNamespace

import pytest
import torch
from parts import Lambda, flat, plain, task_of
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tersor.engines import simulation
from tersor.errors import CaptureError
from tersor.network.capture import capture
from tersor.network.network import op_name, title
from tersor.network.rewrites import unroll
from tersor.network.rewrites.unroll import Unroll, why_not
from tersor.pipeline.graph.prepare import prepare
from tersor.recipe import PRESETS

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}
OPERATORS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
WIDTH, STATE, LENGTH = 5, 6, 4


class Recurrent(nn.Module):
    """Batches come first outside; ``time_first`` turns them inside. ``gives``: the output, the last state, or both."""

    def __init__(self, kind, layers=1, both=False, bias=True, time_first=False, gives="output"):
        super().__init__()
        torch.manual_seed(0)
        self.time_first, self.gives = time_first, gives
        form = {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": not time_first}
        self.rnn = KINDS[kind](WIDTH, STATE, **form)

    def forward(self, x, *first):
        first = [f.transpose(0, 1) for f in first]
        x = x.transpose(0, 1) if self.time_first else x
        output, last = self.rnn(x, tuple(first) if len(first) == 2 else first[0] if first else None)
        output = output.transpose(0, 1) if self.time_first else output
        last = [part.transpose(0, 1) for part in (last if isinstance(last, tuple) else (last,))]
        return {"output": (output,), "state": tuple(last), "both": (output, *last)}[self.gives]


def recurrent(network):
    return [n for n in network.operators() if op_name(n) in OPERATORS]


def linears(network):
    return [title(n) for n in network.operators() if op_name(n) == "linear"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layers", "both", "bias", "time_first", "given", "gives"),
    [
        (1, False, True, False, False, "output"),
        (2, False, False, True, True, "both"),
        (1, True, False, False, True, "state"),
        (2, True, True, True, False, "both"),
        pytest.param(1, True, True, True, False, "state", marks=pytest.mark.slow),
        pytest.param(2, True, False, False, False, "output", marks=pytest.mark.slow),
    ],
)
def test_it_is_the_same_function_for_any_batch(kind, layers, both, bias, time_first, given, gives):
    net = Recurrent(kind, layers, both, bias, time_first, gives).eval()
    random = torch.Generator().manual_seed(1)

    def inputs(batch):
        states = 0 if not given else 2 if kind == "lstm" else 1
        shapes = [(LENGTH, WIDTH)] + [(layers * (2 if both else 1), STATE)] * states
        return tuple(torch.randn(batch, *shape, generator=random) for shape in shapes)

    network = capture(net, inputs(1))
    assert len(recurrent(network)) == 1
    written = Unroll()(network)
    assert not recurrent(written)
    assert len(recurrent(network)) == 1, "the network that was given is not changed"
    for batch in (1, 3):
        x = inputs(batch)
        for found, wanted in zip(flat(written(*x)), plain(net, *x), strict=True):
            assert found.shape == wanted.shape
            assert (found - wanted).abs().max() <= 1e-6


def test_every_weight_is_held_once_and_every_product_has_a_name_of_its_own():
    network = capture(Recurrent("gru", layers=2, both=True).eval(), (torch.zeros(1, LENGTH, WIDTH),))
    written = Unroll()(network)
    assert {n for n, _ in written.tensors()} == {n for n, _ in network.tensors()}
    ways = ("l0", "l0_reverse", "l1", "l1_reverse")
    # A state of zeros is multiplied by nothing, so each direction has a product less than steps.
    steps = {w: range(1, LENGTH) if w in ("l0", "l1") else range(LENGTH - 1) for w in ways}
    wanted = [f"rnn.input_{w}" for w in ways] + [f"rnn.state_{w}.{t}" for w in ways for t in steps[w]]
    assert sorted(linears(written)) == sorted(wanted)


def test_a_module_called_in_a_loop_gets_a_name_for_each_call():
    net = Lambda(lambda m, x: m.rnn(m.rnn(x)[0])[0], rnn=nn.LSTM(3, 3, batch_first=True)).eval()
    x = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    written = Unroll()(capture(net, (x[:1],)))
    assert linears(written) == ["rnn.input_l0", "rnn.state_l0.1", "rnn.call2.input_l0", "rnn.call2.state_l0.1"]
    assert (written(x) - plain(net, x)[0]).abs().max() <= 1e-6


def test_a_sequence_without_a_batch_is_written_out_too():
    """PyTorch gives it a batch of 1 by itself."""
    net = Lambda(lambda m, x: m.rnn(x[0])[0][None], rnn=nn.GRU(WIDTH, STATE)).eval()
    x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    written = Unroll()(capture(net, (x,)))
    assert not recurrent(written)
    assert (written(x) - plain(net, x)[0]).abs().max() <= 1e-6


@pytest.mark.parametrize("batch_decides", ["traced", "in the model's own code"])
def test_a_length_that_is_the_batch_stays(batch_decides):
    def forward(m, x):
        number = x.shape[0] if batch_decides == "traced" else int(x.shape[0])
        return m.rnn(x)[0] + torch.zeros(number, 1, 1)

    net = Lambda(forward, rnn=nn.RNN(WIDTH, STATE)).eval()
    network = capture(net, (torch.zeros(LENGTH, 2, WIDTH),))
    assert [why_not(n) for n in recurrent(network)] == ["its length is not fixed"]
    written, x = Unroll()(network), torch.randn(LENGTH + 3, 2, WIDTH)
    assert len(recurrent(written)) == 1
    torch.testing.assert_close(written(x), plain(net, x)[0])


def test_a_batch_that_the_code_fixes_is_free_in_the_steps():
    net = Lambda(
        lambda m, x: m.rnn(x, torch.ones(1, int(x.shape[0]), STATE))[0], rnn=nn.GRU(WIDTH, STATE, batch_first=True)
    ).eval()
    written = Unroll()(capture(net, (torch.zeros(1, LENGTH, WIDTH),)))
    assert not recurrent(written)
    x = torch.randn(7, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    assert (written(x) - plain(net, x)[0]).abs().max() <= 1e-6


def lstm(**options):
    net = Lambda(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(WIDTH, STATE, batch_first=True, **options)).eval()
    return net, capture(net, (torch.zeros(1, LENGTH, WIDTH),))


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # PyTorch's own, of itself
def test_a_projected_state_stays():
    net, network = lstm(proj_size=3)
    assert [why_not(n) for n in recurrent(network)] == ["its state is projected"]
    x = torch.randn(3, LENGTH, WIDTH)
    torch.testing.assert_close(Unroll()(network)(x), plain(net, x)[0])


def test_too_many_steps_stay(monkeypatch):
    node = recurrent(lstm()[1])[0]
    monkeypatch.setattr(unroll, "STEPS", LENGTH)
    assert why_not(node) is None
    monkeypatch.setattr(unroll, "STEPS", LENGTH - 1)
    assert why_not(node) == "its 4 steps are too many to unroll; at most 3 are supported"


def test_what_capture_never_gives_is_still_refused():
    node = recurrent(lstm()[1])[0]
    args = node.args
    assert why_not(node) is None
    node.update_arg(6, True)
    assert why_not(node) == "it is in training mode"
    node.args = (SimpleNamespace(meta={"val": torch.zeros(LENGTH, WIDTH)}), *args[1:])
    assert why_not(node) == "its input has no batch"
    node.target = torch.ops.aten.lstm.data
    assert why_not(node) == "packed sequences are not unrolled: pass padded ones of a fixed length"


def test_packed_sequences_are_not_captured_at_all():
    net = Lambda(
        lambda m, x, n: m.rnn(pack_padded_sequence(x, n, batch_first=True))[1], rnn=nn.GRU(WIDTH, STATE)
    ).eval()
    with pytest.raises(CaptureError, match="cannot capture this model"):
        capture(net, (torch.zeros(2, LENGTH, WIDTH), torch.tensor([LENGTH, 2])))


def test_a_network_without_recurrent_layers_is_itself():
    network = capture(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),))
    assert Unroll()(network) is network


@pytest.mark.parametrize(("recipe", "left"), [("int8-dynamic", 0), ("int8-weight", 0), ("int8-static", 1)])
def test_recipes_that_calibrate_leave_the_operator(recipe, left):
    """Ranges that are fixed beforehand would be one for each step."""
    task = task_of(Recurrent("gru"), (LENGTH, WIDTH), batches=1)
    prepared = prepare(task, PRESETS[recipe](), simulation().policy())
    assert len(recurrent(prepared.network)) == left
    assert len(recurrent(prepared.original)) == 1
    rows = [layer.reason for layer in prepared.plan.layers if layer.op in OPERATORS]
    assert rows == ["torch: no integer gru here"] * left


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_the_plan_tells_why_a_layer_stays():
    prepared = prepare(task_of(lstm(proj_size=3)[0], (LENGTH, WIDTH)), PRESETS["int8-dynamic"](), simulation().policy())
    rows = [(r.name, r.planned, r.reason) for r in prepared.plan.layers if r.op == "lstm"]
    assert rows == [("rnn.lstm", "fp32", "not unrolled: its state is projected")]
