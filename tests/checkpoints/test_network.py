"""A network written and read back is the same; a file that somebody prepared does nothing."""

import json

import pytest
import torch
from parts import Lambda
from safetensors.torch import load_file
from torch import nn

from tersor import Quantization, Recipe, Task, compress
from tersor.checkpoints.network import FILES, read, write
from tersor.errors import SavedFolderError
from tersor.network.capture import capture


@pytest.mark.parametrize("format", ["int8", "int4", "int2", "ternary", "fp8_e4m3"])
def test_round_trip_is_exact(tmp_path, format):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3)).eval()
    data = [(torch.randn(8, 3, 8, 8),)]
    recipe = Recipe(weights=Quantization(format=format), bias_correction=False)
    done = compress(Task("t", model, (data[0][0][:1],), lambda: data), recipe, "torch", report=False, progress=False)
    write(done.network, tmp_path)
    again = read(tmp_path)
    assert torch.equal(again(data[0][0]), done(data[0][0]))
    write(again, tmp_path)
    assert torch.equal(read(tmp_path)(data[0][0]), done(data[0][0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "aten.relu_.default"}, r"relu_.default is not allowed"),
        ({"target": "aten.from_file.default"}, "not allowed"),
        ({"target": "os.system.default"}, "not allowed"),
        ({"name": "x; import os"}, "name"),
    ],
)
def test_prepared_graphs_are_refused(tmp_path, change, said):
    write(capture(nn.ReLU().eval(), (torch.zeros(1, 2),)), tmp_path)
    graph = json.loads((tmp_path / FILES[0]).read_text())
    next(n for n in graph["nodes"] if n["op"] == "call_function").update(change)
    (tmp_path / FILES[0]).write_text(json.dumps(graph))
    with pytest.raises(SavedFolderError, match=said):
        read(tmp_path)


def _saved(tmp_path, model, *shape):
    network = capture(model.eval(), (torch.zeros(1, *shape),))
    write(network, tmp_path)
    return network, read(tmp_path)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.to(torch.float64).to(torch.float32), (3,)),
        (lambda x: torch.cat([a * 2 for a in x.chunk(3, 1)], 1), (6,)),
        (lambda x: x.split([1, 2], 1)[1] + x.topk(2, 1)[0], (3,)),
        (lambda x: torch.where(x > 0, x, float("-inf")).clamp(min=-5), (3,)),
        (lambda x: x.view(x.shape[0] * 2, -1).flip(0).reshape(x.shape[0], -1), (4,)),
        (lambda x: x + torch.arange(x.shape[-1], dtype=torch.float32, device="cpu"), (4,)),
        (lambda x: x.contiguous(memory_format=torch.channels_last) * 2, (2, 3, 4)),
        (lambda x: (x, x.argmax(1)), (4,)),
    ],
    ids=["dtype", "chunk", "split", "infinity", "batch arithmetic", "device", "memory format", "two outputs"],
)
def test_arguments_of_every_kind_survive(tmp_path, function, shape):
    network, again = _saved(tmp_path, Lambda(lambda _, x: function(x)), *shape)
    x = torch.randn(5, *shape)
    wanted, found = (n(x) if isinstance(n(x), tuple) else (n(x),) for n in (network, again))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert (again.input_names, again.output_names, again.dynamic_batch) == (
        network.input_names, network.output_names, network.dynamic_batch,
    )  # fmt: skip


@pytest.mark.parametrize(("bits", "format"), [(2, "int2"), (3, "int3"), (4, "int4")])
def test_few_bits_are_packed_on_disk(tmp_path, bits, format):
    torch.manual_seed(0)
    data = [(torch.randn(8, 64),)]
    task = Task("t", nn.Linear(64, 64).eval(), (data[0][0][:1],), lambda: data)
    recipe = Recipe(weights=Quantization(format=format), bias_correction=False)
    done = compress(task, recipe, "torch", report=False, progress=False)
    write(done.network, tmp_path)
    packed = load_file(tmp_path / FILES[1])["weight_codes"]
    assert packed.numel() == 64 * 64 * bits // 8
    codes = {n: t for n, t in read(tmp_path).tensors() if n.endswith("codes")}
    assert all(torch.equal(t, done.network.tensor(n)) for n, t in codes.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g.update(format=7), "this version reads 1"),
        (lambda g: g.pop("nodes"), "nodes"),
        (lambda g: g["tensors"].update({"a b": {"shape": [1], "dtype": "float32"}}), "tensors.a b"),
        (lambda g: g["nodes"][1].update(target="operator.setitem"), "not allowed|not a network"),
        (lambda g: g["nodes"][1].update(target="aten.set_.source_Tensor"), "not allowed"),
        (lambda g: g["nodes"][1].update(target="prims.add.default"), "not allowed"),
        (lambda g: g["nodes"][1].update(op="call_module", target="forward"), "nodes.1.op"),
        (lambda g: g["nodes"][1].update(op="call_method", target="__reduce__"), "nodes.1.op"),
        (lambda g: g["nodes"][1].update(kwargs={"dict": {"x=1); print(": 1}}), "name"),
        (lambda g: g["nodes"][1].update(args=[{"torch": "load"}]), "argument has the unknown torch"),
        (lambda g: g["nodes"][1].update(args=[{"dtype": "load"}]), "dtype"),
        (lambda g: g["nodes"][1].update(args=[{"node": "nobody"}]), "nobody"),
        (lambda g: g["nodes"][0].update(target="__class__.__init__"), "not a network"),
    ],
)
def test_graphs_prepared_otherwise_are_refused(tmp_path, change, said):
    write(capture(nn.ReLU().eval(), (torch.zeros(1, 2),)), tmp_path)
    graph = json.loads((tmp_path / FILES[0]).read_text())
    assert graph["nodes"][1]["op"] == "call_function"
    change(graph)
    (tmp_path / FILES[0]).write_text(json.dumps(graph))
    with pytest.raises(SavedFolderError, match=said):
        read(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_files_cut_short_are_named(tmp_path, name):
    write(capture(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)), tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(SavedFolderError, match=r"cannot be read|not valid JSON"):
        read(tmp_path)
