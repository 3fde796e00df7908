"""The recurrent modules against PyTorch's own, whose every case they take."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import tersor

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}
# int16 weights cannot be; bf16 and int8 are coarse. FP16 weights tell a wrong formula from rounding.
EXACT = "fp16"


def flat(result):
    output, state = result
    output = output.data if isinstance(output, PackedSequence) else output
    return torch.cat([p.flatten() for p in (output, *(state if isinstance(state, tuple) else (state,)))])


def close(ours, theirs, tolerance):
    return float((flat(ours) - flat(theirs)).norm() / flat(theirs).norm()) < tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "both", "first"), list(itertools.product((1, 2), (False, True), (False, True))))
def test_layers_directions_and_layouts(kind, layers, both, first):
    torch.manual_seed(0)
    net = KINDS[kind](12, 16, num_layers=layers, bidirectional=both, batch_first=first).eval()
    x = torch.randn(3, 5, 12)
    for recipe, tolerance in ((EXACT, 2e-3), ("int8-dynamic", 0.03), ("int16-dynamic", 0.015)):
        small = tersor.quantize_dynamic(net, recipe)
        with torch.no_grad():
            assert [t.shape for t in small(x)[1]] == [t.shape for t in net(x)[1]]
            assert small(x)[0].shape == net(x)[0].shape
            assert close(small(x), net(x), tolerance), recipe


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_sequences(kind, both, ordered):
    torch.manual_seed(1)
    net = KINDS[kind](6, 8, num_layers=2, bidirectional=both, batch_first=True).eval()
    lengths = [5, 4, 1] if ordered else [1, 5, 4]
    packed = pack_padded_sequence(torch.randn(3, 5, 6), lengths, batch_first=True, enforce_sorted=ordered)
    with torch.no_grad():
        ours, theirs = tersor.quantize_dynamic(net, EXACT)(packed), net(packed)
    assert close(ours, theirs, 2e-3)
    padded = [pad_packed_sequence(r[0], batch_first=True) for r in (ours, theirs)]
    assert torch.equal(padded[0][1], padded[1][1])
    assert torch.allclose(padded[0][0], padded[1][0], atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_in_and_out_and_a_sequence_may_lack_its_batch(kind):
    torch.manual_seed(2)
    net = KINDS[kind](4, 8).eval()
    small = tersor.quantize_dynamic(net, EXACT)
    x = torch.randn(6, 4)
    with torch.no_grad():
        assert close(small(x), net(x), 2e-3)
        first, state = small(x[:3])
        second, _ = small(x[3:], state)
        assert torch.allclose(torch.cat([first, second]), small(x)[0], atol=1e-6)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # PyTorch's own, of itself
def test_projections():
    torch.manual_seed(3)
    net = nn.LSTM(6, 16, num_layers=2, proj_size=5, bidirectional=True).eval()
    x = torch.randn(4, 2, 6)
    with torch.no_grad():
        assert close(tersor.quantize_dynamic(net, EXACT)(x), net(x), 2e-3)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(cell, bias):
    torch.manual_seed(4)
    net = cell(6, 8, bias=bias).eval()
    small, x = tersor.quantize_dynamic(net, EXACT), torch.randn(3, 6)
    with torch.no_grad():
        theirs, ours = net(x), small(x)
        theirs, ours = (t if isinstance(t, tuple) else (t,) for t in (theirs, ours))
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, atol=2e-3)
        again = small(x[0], tuple(t[0] for t in ours) if len(ours) == 2 else ours[0][0])
        assert (again[0] if isinstance(again, tuple) else again).shape == (8,)


def test_without_biases():
    torch.manual_seed(5)
    net, x = nn.GRU(4, 8, bias=False).eval(), torch.randn(3, 2, 4)
    with torch.no_grad():
        assert close(tersor.quantize_dynamic(net, EXACT)(x), net(x), 2e-3)


def test_bad_input_is_refused_as_by_pytorch():
    small = tersor.quantize_dynamic(nn.LSTM(4, 8).eval())
    with pytest.raises(ValueError, match="sequence length above 0"):
        small(torch.zeros(0, 2, 4))
    with pytest.raises(ValueError, match="expected a state of"):
        small(torch.zeros(3, 2, 4), (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8)))
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        small(torch.zeros(4))


def test_integer_states_are_those_of_integer_arithmetic():
    """One step by hand, in float64 on the codes."""
    torch.manual_seed(6)
    cell = nn.LSTMCell(8, 8).eval()
    small, x, h, c = tersor.quantize_dynamic(cell), torch.randn(2, 8), torch.randn(2, 8), torch.randn(2, 8)

    def product(value, weight):
        low, high = value.amin(1, keepdim=True).double(), value.amax(1, keepdim=True).double()
        scale = (high.clamp(min=0) - low.clamp(max=0)) / 254
        return (value.double() / scale).round() * scale @ weight.dequantize().double().t()

    d = small.direction
    gates = product(x, d.ih) + product(h, d.hh) + (cell.bias_ih + cell.bias_hh).double()
    i, f, g, o = gates.chunk(4, 1)
    expected = f.sigmoid() * c + i.sigmoid() * g.tanh()
    with torch.no_grad():
        got = small(x, (h, c))
    assert torch.allclose(got[1].double(), expected, atol=1e-5)
    assert torch.allclose(got[0].double(), o.sigmoid() * expected.tanh(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"bias": False, "num_layers": 2}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent_modules_answer_for_their_weights(kind, options):
    net = KINDS[kind](6, 8, **options).eval()
    small = tersor.quantize_dynamic(net, progress=False)
    small.flatten_parameters()
    for name, exact in net.named_parameters():
        found = getattr(small, name)
        assert (found.shape, found.dtype, found.device) == (exact.shape, exact.dtype, exact.device)
        assert torch.allclose(found, exact, atol=0.01)
    for ours, theirs in zip(small.all_weights, net.all_weights, strict=True):
        assert all(torch.allclose(a, b, atol=0.01) for a, b in zip(ours, theirs, strict=True))
    for missing in ("weight_ih_l7", "weight_hr_l0", "weight", "bias_xx_l0"):
        assert not hasattr(small, missing)
    assert hasattr(small, "weight_hh_l0_reverse") == net.bidirectional
    assert hasattr(small, "bias_ih_l0") == net.bias


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projections_answer_for_theirs():
    net = nn.LSTM(6, 8, proj_size=3).eval()
    small = tersor.quantize_dynamic(net, progress=False)
    assert torch.allclose(small.weight_hr_l0, net.weight_hr_l0, atol=0.01)
    assert [tuple(t.shape) for t in small.all_weights[0]] == [tuple(t.shape) for t in net.all_weights[0]]


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_answer_for_theirs(cell):
    net = cell(6, 8).eval()
    small = tersor.quantize_dynamic(net, progress=False)
    for name, exact in net.named_parameters():
        assert torch.allclose(getattr(small, name), exact, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_have_the_dtype_of_the_input(kind, dtype):
    small = tersor.quantize_dynamic(KINDS[kind](6, 8).eval().to(dtype), progress=False)
    x = torch.randn(4, 2, 6, dtype=dtype)
    with torch.no_grad():
        output, state = small(x)
        again, _ = small(pack_padded_sequence(x, [4, 2]), state)
    assert output.dtype == again.data.dtype == dtype
    assert {s.dtype for s in (state if isinstance(state, tuple) else (state,))} == {dtype}
