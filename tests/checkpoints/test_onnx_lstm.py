"""LSTMs as DynamicQuantizeLSTM: held against the simulation in steps, which is its own reference."""

import pytest
import torch
from torch import nn

import tersor
from tersor.checkpoints.onnx.lstm import roll_lstms
from tersor.network.network import op_name
from tersor.recipe import PRESETS, Rule

STEPS, WIDTH, HIDDEN = 5, 24, 40


class Reader(nn.Module):
    """An LSTM whose output and last states are read; time first inside where it is so made."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.LSTM(WIDTH, HIDDEN, **options)

    def forward(self, x, *state):
        if not self.rnn.batch_first:
            x = x.transpose(0, 1)
        output, (h, c) = self.rnn(x, tuple(s.transpose(0, 1) for s in state) or None)
        return output, h.sum(0), c.sum(0)


CASES = {
    "two layers": ({"batch_first": True, "num_layers": 2}, False),
    "both directions, no bias": ({"bidirectional": True, "bias": False}, False),
    "a state given": ({"num_layers": 2, "bidirectional": True, "batch_first": True}, True),
}


def inputs(options, given, batch):
    states = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    shapes = [(batch, STEPS, WIDTH), *[(batch, states, HIDDEN)] * (2 * given)]
    return tuple(torch.randn(shape, generator=torch.Generator().manual_seed(batch)) for shape in shapes)


def compressed(options, given, recipe="int8-dynamic"):
    task = tersor.Task("lstm", Reader(**options).eval(), inputs(options, given, 1), lambda: [inputs(options, given, 4)])
    return tersor.compress(task, recipe, "onnxruntime", threads=1, report=False, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_engine_computes_what_the_simulation_does(case):
    options, given = CASES[case]
    done, x = compressed(options, given), inputs(options, given, 3)
    exact = Reader(**options).eval()(*x)
    together, _ = roll_lstms(done.network)
    for ours, simulated, operator, float_ in zip(done.runner(*x), done.network(*x), together(*x), exact, strict=True):
        assert (ours - simulated).norm() < 1e-5 * float_.norm()
        assert (operator - simulated).norm() < 1e-5 * float_.norm()
        assert (ours - float_).norm() > 1e-3 * float_.norm()


@pytest.mark.slow
def test_one_operator_stands_for_all_steps_and_the_audit_knows_its_layers():
    done = compressed({"batch_first": True}, False)
    rows = [row for row in done.runner.executed() if row.op == "DynamicQuantizeLSTM"]
    assert len(rows) == 1
    linears = {n.name for n in done.network.operators() if op_name(n) == "linear"}
    assert len(linears) == STEPS, "one over all inputs, and one a step but the first, whose state is zero"
    assert linears < set(rows[0].nodes)
    assert rows[0].precision == "int8"


def test_an_lstm_that_is_not_wholly_integer_stays_in_steps():
    rule = Rule(layer="rnn.state_l0.3", keep="fp32")
    recipe = PRESETS["int8-dynamic"]().model_copy(update={"rules": (rule,)})
    done = compressed({"batch_first": True}, False, recipe)
    assert not any(row.op == "DynamicQuantizeLSTM" for row in done.runner.executed())
    x = inputs({}, False, 2)
    assert (done.runner(*x)[0] - done.network(*x)[0]).abs().max() < 1e-5
