"""Recurrent layers of modules that stay in PyTorch, computed by an engine: their numbers, state and fallbacks."""

import copy
import io
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import tersor
from tersor.engines import recurrent
from tersor.engines.openvino.recurrent import STEPS, OpenVINORecurrent
from tersor.engines.targets import CPUS, target_of
from tersor.network.quantized import QuantizedRecurrent

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}
ENGINES = {name: ("openvino",) if name != "lstm" else ("openvino", "onnxruntime") for name in KINDS}
KERNELS = dict(recurrent.KERNELS)
# The engine's error over FP32 against the PyTorch path's. One scale for a whole batch costs more than one per row.
FACTOR = {"openvino": 1.4, "onnxruntime": 2.0}
# Wide enough for OpenVINO to quantize the inputs of every product.
WIDTH, STATE = 136, 160
CASES = [
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bias": False, "batch_first": True, "bidirectional": True},
]


def parts(result):
    output, state = result
    output = output.data if isinstance(output, PackedSequence) else output
    return [output, *(state if isinstance(state, tuple) else (state,))]


def error(ours, exact):
    """The largest relative error of the output and the parts of the state."""
    assert [p.shape for p in parts(ours)] == [p.shape for p in parts(exact)]
    return max(float((p - q).norm() / q.norm()) for p, q in zip(parts(ours), parts(exact), strict=True))


def equal(one, other):
    return all(torch.equal(p, q) for p, q in zip(parts(one), parts(other), strict=True))


def only(monkeypatch, *names):
    monkeypatch.setattr(recurrent, "KERNELS", {name: KERNELS[name] for name in names})


def made(net):
    small = tersor.quantize_dynamic(net, progress=False)
    assert isinstance(small, QuantizedRecurrent)
    return small.eval()


def in_engine(layer):
    return layer._prepared.kernel is not None


def start(net, batch):
    """A first state, rows of unlike size."""
    count = net.num_layers * (2 if net.bidirectional else 1)
    widths = [net.proj_size or net.hidden_size] + ([net.hidden_size] if net.mode == "LSTM" else [])
    states = tuple(torch.randn(count, batch, n) * torch.linspace(0.2, 0.6, batch)[:, None] for n in widths)
    return states if len(states) > 1 else states[0]


@pytest.mark.exact_int8
@pytest.mark.parametrize(("kind", "engine"), [(k, e) for k in KINDS for e in ENGINES[k]])
@pytest.mark.parametrize("options", CASES)
def test_an_engine_is_as_near_to_fp32_as_pytorch(monkeypatch, kind, engine, options):
    torch.manual_seed(0)
    net = KINDS[kind](WIDTH, STATE, **options).eval()
    only(monkeypatch)
    plain = made(net)
    only(monkeypatch, engine)
    fast = made(net)
    assert in_engine(fast)
    assert not in_engine(plain)
    # Lengths around those of an iteration, and batches, change from call to call.
    for batch, length in ((1, STEPS), (3, 2 * STEPS + 1), (1, STEPS + 3), (2, STEPS)):
        x = torch.randn(batch, length, WIDTH) if net.batch_first else torch.randn(length, batch, WIDTH)
        lengths = [max(1, length - 3 * k) for k in range(batch)][::-1]
        packed = pack_padded_sequence(x, lengths, batch_first=net.batch_first, enforce_sorted=False)
        with torch.no_grad():
            for given in ((x,), (x, start(net, batch)), (packed, start(net, batch))):
                limit = FACTOR[engine] * error(plain(*given), net(*given)) + 1e-3
                assert error(fast(*given), net(*given)) < limit < 0.04


@pytest.mark.exact_int8
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projections_and_sequences_without_batch():
    torch.manual_seed(1)
    net = nn.LSTM(WIDTH, STATE, num_layers=2, proj_size=24, bidirectional=True).eval()
    fast = made(net)
    assert str(fast._prepared.kernel) == "OpenVINO"
    x = torch.randn(6, 2, WIDTH)
    with torch.no_grad():
        first = start(net, 2)
        assert error(fast(x), net(x)) < 0.03
        assert error(fast(x, first), net(x, first)) < 0.03
        alone = fast(x[:, 0])
        assert alone[0].shape == (6, 48)
        assert torch.allclose(alone[0], fast(x[:, :1])[0][:, 0], atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_rows_in_openvino_do_not_depend_on_each_other(monkeypatch, kind):
    only(monkeypatch, "openvino")
    torch.manual_seed(2)
    fast = made(KINDS[kind](WIDTH, STATE))
    x = torch.randn(5, 3, WIDTH)
    x[:, 1] *= 100
    with torch.no_grad():
        together, alone = fast(x), fast(x[:, :1])
    assert torch.allclose(together[0][:, :1], alone[0], atol=1e-5)


@pytest.mark.exact_int8
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_copy_a_file_and_a_cast_compute_in_the_engine(kind):
    torch.manual_seed(3)
    fast, x = made(KINDS[kind](WIDTH, STATE, num_layers=2)), torch.randn(5, 2, WIDTH)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    with torch.no_grad():
        expected = fast(x)
        for other in (copy.deepcopy(fast), torch.load(file, weights_only=False), copy.deepcopy(fast).to("cpu")):
            assert in_engine(other)
            assert equal(other(x), expected)
        half = copy.deepcopy(fast).half()
        assert half(x.half())[0].dtype == torch.float16
        assert error(parts_of(half(x.half())), expected) < 5e-3
    assert fast.state_dict().keys() == half.state_dict().keys()


def parts_of(result):
    output, *state = (p.float() for p in parts(result))
    return output, tuple(state) if len(state) > 1 else state[0]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("assign", [False, True])
def test_loaded_codes_and_written_biases_are_computed_with(kind, assign):
    torch.manual_seed(4)
    one, other = (made(KINDS[kind](WIDTH, STATE)) for _ in range(2))
    x = torch.randn(4, 2, WIDTH)
    with torch.no_grad():
        assert not equal(one(x), other(x))
        one.load_state_dict(other.state_dict(), assign=assign)
        assert equal(one(x), other(x))
        before = other(x)
        other.bias_ih_l0.add_(0.5)
        assert not equal(other(x), before)


@pytest.mark.exact_int8
def test_the_weights_are_held_for_pytorch_only_where_it_computes(monkeypatch):
    def packed(layer):
        return [weight._packed is not None for weight in (layer.directions[0].ih, layer.directions[0].hh)]

    fast = made(nn.GRU(WIDTH, STATE))
    assert packed(fast) == [False, False]
    only(monkeypatch)
    assert packed(made(nn.GRU(WIDTH, STATE))) == [True, True]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_pytorch_computes_what_the_engine_would_get_wrong(kind):
    torch.manual_seed(5)
    fast = made(KINDS[kind](WIDTH, STATE, num_layers=2, dropout=0.5))
    x = torch.randn(5, 2, WIDTH)
    with torch.no_grad():
        x[2, 0, 7] = torch.nan  # spreads in its own row alone
        output = fast(x)[0]
        assert output[2:, 0].isnan().all()
        assert output[:, 1].isfinite().all()
        fast.train()
        x = torch.randn(5, 2, WIDTH)
        assert not torch.equal(fast(x)[0], fast(x)[0])
    hx = torch.zeros(2, 2, STATE, requires_grad=True)
    fast.eval()(x, hx if kind == "gru" else (hx, hx))[0].sum().backward()
    assert hx.grad is not None
    assert hx.grad.abs().sum() > 0


def test_graphs_are_made_of_pytorchs_operators():
    fast = made(nn.GRU(WIDTH, STATE))
    x = torch.randn(3, 2, WIDTH)
    program = torch.export.export(fast, (x,))
    with torch.no_grad():
        assert error(program.module()(x), fast(x)) < 0.02


@pytest.mark.exact_int8
def test_an_engine_that_fails_is_said_and_left(monkeypatch):
    fast, x = made(nn.GRU(WIDTH, STATE)), torch.randn(5, 2, WIDTH)
    only(monkeypatch, "openvino")

    def fails(*given):
        raise RuntimeError("out of order")

    monkeypatch.setattr(OpenVINORecurrent, "__call__", fails)
    with torch.no_grad():
        with pytest.warns(RuntimeWarning, match="width 160: OpenVINO fails, and PyTorch computes it: out of order"):
            first = fast(x)
        assert equal(fast(x), first)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_threads_may_call_a_layer_at_the_same_time(kind):
    fast = made(KINDS[kind](WIDTH, STATE))
    inputs = [torch.randn(6, k % 3 + 1, WIDTH) for k in range(6)]
    with torch.no_grad():
        expected = [fast(x)[0] for x in inputs]
    found = [None] * len(inputs)

    def work(k):
        with torch.no_grad():
            for _ in range(5):
                found[k] = fast(inputs[k])[0]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.exact_int8
def test_other_recipes_stay_in_pytorch():
    net = nn.LSTM(WIDTH, STATE)
    for recipe in ("int16-dynamic", "int8-weight", "fp16"):
        assert not in_engine(tersor.quantize_dynamic(net, recipe, progress=False))
    assert "in ONNX Runtime" in repr(made(net))
    assert "in OpenVINO" in repr(made(nn.RNN(WIDTH, STATE)))


def test_no_engine_computes_where_products_saturate(monkeypatch):
    monkeypatch.setattr("tersor.engines.recurrent.here", lambda: target_of("openvino", CPUS, "x86-avx2"))
    small = tersor.quantize_dynamic(nn.LSTM(8, 16).eval(), progress=False)
    assert small._prepared.kernel is None


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_inputs_of_another_width_are_refused_and_change_nothing(kind):
    small = tersor.quantize_dynamic(kind(8, 16).eval(), progress=False)
    kernel = small._prepared.kernel
    with pytest.raises(ValueError, match="expected 8 features"):
        small(torch.zeros(5, 2, 7))
    assert small._prepared.kernel is kernel
