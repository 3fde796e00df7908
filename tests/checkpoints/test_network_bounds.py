"""What a network.json may ask for: operators that compute, with arguments they take, of bounded sizes."""

import json

import pytest
import torch
from torch import nn

from tersor.checkpoints.graph.allowed import ATEN, operator_of
from tersor.checkpoints.graph.schema import MAX_INPUTS
from tersor.checkpoints.network import FILES, read, unsaveable, write
from tersor.errors import SavedFolderError
from tersor.network.capture import capture

X = {"node": "input_1"}
NOT_COMPUTING = """
    aten.empty.memory_format aten.empty_like.default aten.new_empty.default aten.empty_strided.default
    aten.as_strided.default aten._reshape_alias.default aten.resize.default aten.set.source_Tensor
    aten.from_file.default aten.rand.default aten.randn_like.default aten.bernoulli.default aten.multinomial.default
    aten._sparse_coo_tensor_unsafe.default
    aten.sparse_coo_tensor.size aten.to_sparse.default
    aten._nested_from_padded.default
    aten.quantize_per_tensor.default aten._fft_r2c.out aten.add.str aten.mul.left_t aten.item.default
    aten.nonzero.default aten.segment_reduce.default aten.special_hermite_polynomial_h.default aten.relu_.default
    aten.manual_seed.default aten.save.default aten.pin_memory.default aten.cudnn_is_acceptable.default
    tersor.int8_product.other tersor.nothing.default prims.add.default
    debugprims.save_tensor.default inductor.seed.default
    operator.setitem operator.pow operator.matmul aten.relu
    aten..default aten.relu.default.x aten.__class__.default relu
""".split()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Reads a network of one operator, with changes of its file."""
    folder = tmp_path_factory.mktemp("saved")
    write(capture(nn.ReLU().eval(), (torch.zeros(1, 4),)), folder)
    text = (folder / FILES[0]).read_text()

    def changed(target, args, shape=(2, 4), **kwargs):
        graph = json.loads(text)
        graph["nodes"][1].update(target=target, args=args, kwargs={"dict": kwargs} if kwargs else {})
        graph["inputs"][0]["shape"] = list(shape)
        (folder / FILES[0]).write_text(json.dumps(graph))
        return read(folder)

    return changed


def test_the_table_is_sorted_and_names_operators_that_exist():
    from pathlib import Path

    from tersor.checkpoints.graph import allowed

    listed = Path(allowed.__file__).read_text().split('"""')[3].split()
    assert listed == sorted(listed)
    assert all(hasattr(torch.ops.aten, name) for name in ATEN)


@pytest.mark.parametrize("target", NOT_COMPUTING)
def test_operators_that_do_not_compute_are_refused(target):
    with pytest.raises(ValueError, match=r"not allowed in a saved network: .*report"):
        operator_of(target)


def test_of_all_operators_of_pytorch_none_is_taken_that_writes_or_draws():
    for schema in torch._C._jit_get_all_schemas():
        text = f"{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}"
        try:
            found = operator_of(text)
        except ValueError:
            continue
        kinds = " ".join(str(a.type) for a in schema.arguments)
        assert not schema.is_mutable, text
        assert not any(word in kinds for word in ("Generator", "Storage", "Stream", "Dict")), text
        assert found._schema.name.split("::")[0] in ("aten", "tersor")


TOO_LARGE = {
    "full": ("aten.full.default", [[3, 10**11], 0.5]),
    "range": ("aten.arange.start_step", [0, 10**13, 3]),
    "repeat": ("aten.repeat.default", [X, [10**5, 10**5]]),
    "pad": ("aten.constant_pad_nd.default", [X, [10**12, 0]]),
    "expand": ("aten.expand.default", [{"node": "input_1"}, [10**9, 2, 4]]),
    "outer": ("aten.new_ones.default", [X, [10**6, 10**6]]),
    "interpolated": ("aten.tile.default", [X, [1 << 20, 1 << 10]]),
    "empty, yet long": ("aten.zeros.default", [[0, 1 << 45]]),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_values_without_measure_are_refused_before_they_are_allocated(saved, case):
    with pytest.raises(SavedFolderError, match=r"the node relu, aten\.\w+\.\w+, has \d+ bytes, more than"):
        saved(*TOO_LARGE[case])


@pytest.mark.parametrize("shape", [(1, MAX_INPUTS // 2), (1 << 20, 1 << 20), (1 << 47,)])
def test_inputs_without_measure_are_refused(saved, shape):
    with pytest.raises(SavedFolderError, match=r"the inputs have .* bytes, more than 1024 MiB"):
        saved("aten.relu.default", [X], shape)


WRONG = {
    "no argument": ("aten.relu.default", []),
    "one too many": ("aten.relu.default", [X, 1]),
    "text": ("aten.add.Tensor", [X, "1"]),
    "an unknown keyword": ("aten.relu.default", [X], (2, 4), {"inplace": True}),
    "a stride of 0": ("aten.max_pool1d.default", [X, [2], [0]]),
    "a step of 0": ("aten.slice.Tensor", [X, 1, 0, 4, 0]),
    "no groups": ("aten.channel_shuffle.default", [X, 0], (2, 4, 2, 2)),
    "training": ("aten.batch_norm.default", [X, None, None, None, None, True, 0.1, 1e-5, False]),
    "a list times a number": ("operator.mul", [[1, 2], 10**9]),
    "more than 64 bits": ("aten.add.Scalar", [X, 1 << 65]),
    "many parts": ("aten.unbind.int", [X, 1], (2, 1 << 20)),
    "another device": ("aten.to.device", [X, {"device": "meta"}, {"dtype": "float32"}]),
    "products of other shapes": ("aten.mm.default", [X, X]),
    "a number for a dtype": ("aten.view.dtype", [X, 100]),
    "a number for a layout": ("aten._to_copy.default", [X], (2, 4), {"layout": 9}),
    "an overload of TorchScript": ("aten.to.prim_Device", [X, None, -2]),
    "a weight without elements": ("aten._weight_norm.default", [X, X], (0, 4)),
    "a number for a truth value": ("aten.sum.dim_IntList", [X, [0], 1]),
    "too few weights": ("aten.lstm.input", [X, [X, X], [X], True, 4, 0.0, False, False, False]),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_that_an_operator_does_not_take_are_refused(saved, case):
    target, args, *rest = WRONG[case]
    with pytest.raises(SavedFolderError, match="not a network that Tersor wrote"):
        saved(target, args, *rest[:1], **(rest[1] if rest[1:] else {}))


@pytest.mark.parametrize("name", ["graph", "forward.weight", "_modules.x", "__class__", "training", "x.__dict__"])
def test_a_tensor_cannot_take_the_place_of_the_module_s_own(tmp_path, name):
    write(capture(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)), tmp_path)
    graph = json.loads((tmp_path / FILES[0]).read_text())
    graph["tensors"][name] = graph["tensors"].pop("weight")
    (tmp_path / FILES[0]).write_text(json.dumps(graph))
    with pytest.raises(SavedFolderError, match="cannot have the name"):
        read(tmp_path)


@pytest.mark.parametrize("change", [{"shape": [2, 3]}, {"dtype": "float64"}, {"bits": 4}, {"shape": [1 << 40, 2]}])
def test_tensors_are_those_of_the_file(tmp_path, change):
    write(capture(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)), tmp_path)
    graph = json.loads((tmp_path / FILES[0]).read_text())
    graph["tensors"]["weight"].update(change)
    (tmp_path / FILES[0]).write_text(json.dumps(graph))
    with pytest.raises(SavedFolderError, match="weight"):
        read(tmp_path)


class Strided(nn.Module):
    def forward(self, x):
        return x.as_strided((2, 2), (2, 1)) + 1


def test_what_would_not_be_read_back_is_not_written(tmp_path):
    network = capture(Strided().eval(), (torch.zeros(2, 2),))
    assert "as_strided" in str(unsaveable(network))
    with pytest.raises(SavedFolderError, match=r"cannot be saved: .*as_strided.* not allowed"):
        write(network, tmp_path)
    assert not list(tmp_path.iterdir())
