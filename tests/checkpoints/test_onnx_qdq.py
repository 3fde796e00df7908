"""A quantized Network as ONNX: the same numbers to the last code, and integers in the file."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from quantized import Branches, Q, QConv, QLinear, Residual, Then, Weight, draw, network
from torch import nn
from torch.nn import functional as F

from tersor.checkpoints.onnx import qdq as onnx_qdq
from tersor.checkpoints.onnx.qdq import to_onnx, write_onnx
from tersor.errors import EngineError
from tersor.network.corrections.int32_bias import fit_biases
from tersor.network.network import Network
from tersor.numerics.qtensor import quantize_tensor
from tersor.numerics.spec import QuantSpec

_OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def run(model: onnx.ModelProto, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The model operator by operator, as ONNX defines it: nothing merged."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level, options.intra_op_num_threads = _OFF, 3, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feeds)]


def exported(net: Network) -> onnx.ModelProto:
    model = to_onnx(net)
    onnx.checker.check_model(model, full_check=True)
    return model


def ops(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def dtypes(model: onnx.ModelProto) -> dict[str, int]:
    return {t.name: t.data_type for t in model.graph.initializer}


def on_codes(model: onnx.ModelProto, op: str) -> bool:
    """Whether every node of that type stands before DequantizeLinear and behind no DequantizeLinear."""
    maker = {o: n.op_type for n in model.graph.node for o in n.output}
    nodes = [n for n in model.graph.node if n.op_type == op]
    return bool(nodes) and all(maker.get(n.input[0]) != "DequantizeLinear" for n in nodes)


def test_a_residual_network_computes_the_same_with_any_batch():
    torch.manual_seed(1)
    net = network(Residual())
    model = exported(net)
    fitted = fit_biases(net)
    for batch in (1, 5):
        x = draw(batch, 3, 8, 8, seed=batch)
        torch.testing.assert_close(run(model, x)[0], fitted(x), rtol=1e-5, atol=1e-5)


def test_the_file_holds_every_weight_once_and_as_integers():
    net = network(Residual())
    model = exported(net)
    held = dtypes(model)
    codes = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1]
    assert sorted(tuple(t.dims) for t in codes) == [(5, 8), (8, 3, 3, 3), (8, 8, 3, 3)]
    largest_float = max(np.prod(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    assert largest_float <= 8
    assert set(held.values()) == {TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32}
    read = {i for n in model.graph.node for i in n.input}
    assert set(held) <= read
    quantizers = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(len(n.input) == 3 for n in quantizers)
    assert model.opset_import[0].version == 21
    assert {n.domain for n in model.graph.node} == {""}


def test_names_of_ends_and_nodes_are_the_networks_own():
    net = network(Residual())
    model = exported(net)
    assert [i.name for i in model.graph.input] == list(net.input_names)
    assert [o.name for o in model.graph.output] == list(net.output_names)
    names = {n.name for n in model.graph.node}
    assert {"conv2d", "conv2d_1", "add", "mean", "linear"} <= names
    assert len(names) == len(model.graph.node)
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].dim_value


CLAMPS = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "from below": lambda x: x.clamp(min=-0.3),
    "from above": lambda x: x.clamp(max=0.7),
}


@pytest.mark.slow
def test_a_clamp_never_remains_and_never_changes_a_code():
    random = torch.Generator().manual_seed(0)
    branches = []
    for clamp in CLAMPS.values():
        for form in ("uint8", "int8"):
            spec = QuantSpec(form, symmetric=False)
            for zero_point in (0, 255, int(torch.randint(256, (), generator=random))):
                # Steps from where the clamp's ends are far apart in codes to where they share one.
                scale = 10 ** (-2.4 + 2.6 * float(torch.rand((), generator=random)))
                branches.append(Then(clamp, Q(scale, zero_point + spec.low, spec)))
    net = network(Q(0.05, 128), Branches(*branches), shape=(6,))
    model = exported(net)
    x = draw(64, 6) * 4
    ours, theirs = run(model, x), net(x)
    assert len(ours) == len(branches) == 30
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    maker = {o: n.op_type for n in model.graph.node for o in n.output}
    assert "Relu" not in ops(model)
    clips = [n for n in model.graph.node if n.op_type == "Clip"]
    assert clips
    assert all(maker[n.input[0]] == "QuantizeLinear" for n in clips)


def test_a_clamp_that_somebody_else_reads_stays():
    net = network(Q(0.02, 128), torch.relu, lambda x: Q(0.05)(x) + x, shape=(6,))
    x = draw(8, 6)
    model = exported(net)
    assert "Relu" in ops(model)
    torch.testing.assert_close(run(model, x)[0], net(x))


MOVES = {
    "MaxPool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "Pad": lambda x: torch.cat([F.pad(x, (1, 2, 0, 1)), F.pad(x, (1, 2, 0, 1), mode="reflect")], 1),
    "Resize": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "DepthToSpace": lambda x: F.pixel_shuffle(x, 2),
    "Slice": lambda x: x[:, 1:3, ::2],
    "Concat": lambda x: torch.cat([x, x[:, :2]], 1),
    "Split": lambda x: torch.cat(x.split(2, 1)[::-1], 1),
    "Transpose": lambda x: x.transpose(1, 2),
    "Reshape": lambda x: x.flatten(1),
}


@pytest.mark.slow
@pytest.mark.parametrize("quantized_behind", [False, True])
def test_what_moves_values_moves_codes(quantized_behind):
    quantizer = Q(0.02, 100)
    behind = [quantizer] if quantized_behind else []
    net = network(
        quantizer, Branches(*(Then(m, *behind, torch.neg) for m in MOVES.values())), shape=(4, 8, 8)
    )
    model = exported(net)
    x = draw(3, 4, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(run(model, x), net(x), strict=True))
    assert [op for op in MOVES if not on_codes(model, op)] == []
    assert ops(model).count("QuantizeLinear") == 1


def test_padding_that_is_not_zero_stays_in_float():
    net = network(Q(0.02, 100), lambda x: F.pad(x, (1, 1), value=0.5), torch.neg)
    model = exported(net)
    x = draw(2, 3, 8, 8)
    assert torch.equal(run(model, x)[0], net(x))
    assert not on_codes(model, "Pad")


def test_uneven_padding_becomes_the_convolutions_own():
    net = network(
        Q(0.02, 100), lambda x: F.pad(x, (0, 1, 0, 1)), Q(0.02, 100), QConv(3, 4, stride=2, padding=0)
    )
    model = exported(net)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    assert next(a.ints for a in conv.attribute if a.name == "pads") == [0, 0, 1, 1]
    assert "Pad" not in ops(model)
    x = draw(2, 3, 8, 8)
    torch.testing.assert_close(run(model, x)[0], fit_biases(net)(x))


@pytest.mark.parametrize("widths", [(0, 0, 0, 0, 1, 0), (-1, 0, 0, 1, 0, 1)])
def test_padding_of_channels_and_cropping_are_no_padding_of_a_convolution(widths):
    net = network(Q(0.02, 100), lambda x: F.pad(x, widths), Q(0.02, 100), QConv(4, 4))
    model = exported(net)
    assert ops(model).count("Pad") == 1
    x = draw(2, 3, 8, 8)
    torch.testing.assert_close(run(model, x)[0], fit_biases(net)(x))


def test_padding_between_different_quantizers_is_left_alone():
    net = network(Q(0.02, 100), lambda x: F.pad(x, (0, 1, 0, 1)), Q(0.03, 90), QConv(3, 4, padding=0))
    model = exported(net)
    x = draw(2, 3, 8, 8)
    torch.testing.assert_close(run(model, x)[0], fit_biases(net)(x))


def test_a_mean_over_space_becomes_global_average_pooling():
    means = [
        lambda x, k=keep, d=dims: x.mean(d, keepdim=k)
        for keep in (False, True)
        for dims in ((2, 3), (-1, -2))
    ]
    net = network(
        Q(0.02, 100), Branches(*(Then(m, *b) for m in means for b in ((), (Q(0.01, 100), torch.neg))))
    )
    model = exported(net)
    x = draw(2, 3, 8, 8)
    assert ops(model).count("GlobalAveragePool") == 8
    assert "ReduceMean" not in ops(model)
    for ours, theirs in zip(run(model, x), net(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_other_means_stay():
    net = network(Q(0.02, 100), lambda x: x.mean((1, 2)))
    assert "ReduceMean" in ops(exported(net))


def test_slices_of_everything_and_repeated_quantizers_disappear():
    quantizer = Q(0.02, 100)
    net = network(quantizer, lambda x: x[:, :], quantizer, quantizer, torch.neg)
    assert ops(exported(net)) == ["QuantizeLinear", "DequantizeLinear", "Neg"]


LAYOUTS = [
    f"{form} {text}"
    for form in ("int8", "int4")
    for text in ("tensor", "channel", "filters:4", "filters:3", "group:4")
]


def test_every_layout_of_weight_scales():
    layers = [QLinear(12, 8, QuantSpec(*text.split())) for text in LAYOUTS]
    net = network(Branches(*layers), shape=(12,))
    weights = [n for n in net.operators() if n.target is torch.ops.tersor.dequantize.default]
    for node, text in zip(weights, LAYOUTS, strict=True):
        if text.startswith("int4"):
            node.meta["bits"] = 4
    model = exported(net)
    x = draw(4, 12)
    for ours, theirs in zip(run(model, x), net(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    held = [t.data_type for t in model.graph.initializer if list(t.dims) in ([8, 12], [12, 8])]
    assert sorted(held) == sorted([TensorProto.INT8] * 5 + [TensorProto.INT4] * 5)


def test_int4_weights_of_a_convolution_are_half_as_large_and_computed_as_int8():
    conv = QConv(4, 4)
    conv.weight = Weight(draw(4, 4, 3, 3), QuantSpec("int4", "channel"))
    net = network(Q(0.02, 128), conv, shape=(4, 8, 8))
    for node in net.operators():
        if node.target is torch.ops.tersor.dequantize.default:
            node.meta["bits"] = 4
    model = exported(net)
    held = next(t for t in model.graph.initializer if list(t.dims) == [4, 4, 3, 3])
    assert held.data_type == TensorProto.INT4
    assert len(held.raw_data) == 72
    x = draw(2, 4, 8, 8)
    torch.testing.assert_close(run(model, x)[0], fit_biases(net)(x))


def test_ragged_groups_are_cut_into_groups_that_divide():
    net = network(QLinear(10, 8, QuantSpec("int8", "group:4")), shape=(10,))
    model, x = exported(net), draw(3, 10)
    sizes = [a.i for n in model.graph.node for a in n.attribute if a.name == "block_size"]
    assert sizes == [2]
    torch.testing.assert_close(run(model, x)[0], net(x))


def test_groups_that_nothing_divides_are_refused_by_name():
    net = network(QLinear(11, 8, QuantSpec("int8", "group:4")), shape=(11,))
    with pytest.raises(EngineError, match=r"dequantize.*groups of 4.*torch"):
        to_onnx(net)


def test_float_formats_round_trip_as_in_the_simulation():
    forms = ["fp16", "bf16", "fp8_e4m3", "fp8_e5m2"]
    net = network(
        Branches(*(Q(scale, spec=QuantSpec(f)) for f in forms for scale in (0.5, 1.0))), shape=(64,)
    )
    x = draw(8, 64) * torch.logspace(-6, 6, 64)
    for ours, theirs in zip(run(exported(net), x), net(x), strict=True):
        assert torch.equal(ours, theirs)


def test_what_onnx_cannot_say_is_refused():
    binary = network(Q(0.5, spec=QuantSpec("binary")), shape=(6,))
    with pytest.raises(EngineError, match=r"cast.*binary.*torch"):
        to_onnx(binary)
    straddling = network(
        lambda x: torch.ops.tersor.fake_quantize(x, torch.tensor(0.1), torch.tensor(0.0), -9, 70000, 0)
    )
    with pytest.raises(EngineError, match=r"fake_quantize.*-9…70000"):
        to_onnx(straddling)


def test_narrow_code_ranges_are_kept():
    spec = QuantSpec("int8", symmetric=True)
    net = network(Q(0.01, spec=spec), torch.neg, shape=(4,))
    x = torch.tensor([[-5.0, -1.28, -1.27, 5.0]])
    assert run(exported(net), x)[0].tolist() == net(x).tolist()
    assert net(x)[0, 0].item() == pytest.approx(1.27)


def test_an_output_that_is_an_input_and_one_that_appears_twice():
    class Odd(nn.Module):
        def forward(self, x):
            y = torch.neg(x)
            return x, y, y

    from tersor.network.capture import capture

    net = capture(Odd().eval(), (torch.zeros(2, 3),))
    x = draw(4, 3)
    for ours, theirs in zip(run(exported(net), x), net(x), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_in_half_precision_are_stored_so():
    weight = draw(5, 6).half()

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", weight)

        def forward(self, x):
            return F.linear(x, self.weight.to(torch.float32))

    from tersor.network.capture import capture

    net = capture(Half().eval(), (torch.zeros(2, 6),))
    model = exported(net)
    assert TensorProto.FLOAT16 in dtypes(model).values()
    x = draw(3, 6)
    torch.testing.assert_close(run(model, x)[0], net(x))


def test_a_model_beyond_the_limit_of_one_message_gets_a_second_file(tmp_path, monkeypatch):
    net = network(QLinear(256, 64), shape=(256,))
    model = to_onnx(net)
    x = draw(2, 256)
    expected = run(model, x)[0]
    assert write_onnx(model, tmp_path) == ("model.onnx",)
    monkeypatch.setattr(onnx_qdq, "LIMIT", 1000)
    large = tmp_path / "large"
    large.mkdir()
    assert write_onnx(model, large) == ("model.onnx", "model.onnx.data")
    assert sorted(p.name for p in large.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert torch.equal(run(onnx.load(str(large / "model.onnx")), x)[0], expected)
    # What is in memory still holds its own weights.
    assert torch.equal(run(model, x)[0], expected)


def test_codes_in_the_file_are_those_of_the_quantizer():
    weight = draw(5, 6)
    linear = QLinear(6, 5)
    linear.weight = Weight(weight)
    model = exported(network(Q(0.1, 10), linear, shape=(6,)))
    held = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if list(t.dims) == [5, 6])
    assert torch.equal(
        torch.from_numpy(held.copy()), quantize_tensor(weight, QuantSpec("int8", "channel")).codes
    )
