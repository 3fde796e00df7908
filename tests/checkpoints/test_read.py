"""Weights read back from files that whole runs wrote: names, order of rows, and what stays out."""

import gguf
import numpy as np
import pytest
import torch
from parts import Lambda, task_of
from torch import nn

import tersor
from tersor.checkpoints.gguf.write import write_gguf
from tersor.checkpoints.read import read_weights
from tersor.errors import CheckpointError
from tersor.numerics import QuantSpec
from tests.checkpoints.tiny_llama import quantized, tiny_llama


def by_layer(name):
    """Q4_0 and Q8_0, with scales of several widths."""
    return QuantSpec("int8" if "down" in name else "int4", "group:64" if "v_proj" in name else "channel",
                     scale_dtype="float16")  # fmt: skip


def test_a_llama_comes_back_from_gguf_under_its_own_names_and_in_its_own_order(tmp_path):
    model = tiny_llama(torch.float16)
    qtensors = quantized(model, by_layer)
    tensors = model.state_dict() | qtensors
    write_gguf(tmp_path / "m.gguf", model.config.to_dict(), tensors.items(), None, kind="f16")
    found = dict(read_weights(tmp_path))
    assert found.keys() == qtensors.keys()
    for name, q in qtensors.items():
        assert torch.equal(found[name].codes, q.codes), name
        assert torch.equal(found[name].dequantize(), q.dequantize()), name


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_rounded_floats_come_back_as_the_gguf_package_reads_them(kind, tmp_path):
    """Blocks of Q4_0 have negative scales where the largest value is positive, and a scale of 0 where all is 0."""
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight.data[:3, :32] = 0
    write_gguf(tmp_path / "m.gguf", model.config.to_dict(), model.state_dict().items(), None, kind=kind)
    theirs = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    found = dict(read_weights(tmp_path))
    matrices = [t for t in theirs.values() if len(t.shape) == 2]
    assert len(found) == len(matrices)
    scales = np.concatenate([t.data[:, :2].copy().view(np.float16).reshape(-1) for t in matrices])
    assert (scales == 0).any()
    assert (scales < 0).any() == (kind == "q4_0")
    for name, there in (("mlp.up_proj", "ffn_up"), ("self_attn.o_proj", "attn_output")):
        data = theirs[f"blk.0.{there}.weight"]
        expected = torch.from_numpy(gguf.quants.dequantize(data.data, data.tensor_type))
        assert torch.equal(found[f"model.layers.0.{name}.weight"].dequantize(), expected)


def test_blocks_without_zero_points_are_refused_by_the_layers_name(tmp_path):
    model = tiny_llama(hidden=256, hidden_act="silu")
    write_gguf(tmp_path / "m.gguf", model.config.to_dict(), model.state_dict().items(), None, "q4_k", ragged="f16")
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.down_proj\.weight is in q4_k"):
        list(read_weights(tmp_path))


@pytest.mark.parametrize(("recipe", "engine"), [("int8-static", "torch"), ("int8-static", "onnxruntime"),
                                                ("int8-dynamic", "onnxruntime")])  # fmt: skip
def test_a_saved_run_holds_the_weights_of_its_plan(recipe, engine, tmp_path):
    torch.manual_seed(0)
    model = Lambda(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(24, 40, batch_first=True), head=nn.Linear(40, 7))
    shape = (5, 24)
    if recipe == "int8-static":
        model, shape = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)), (3, 8, 8)
    done = tersor.compress(task_of(model.eval(), shape), recipe, engine, report=False, progress=False, threads=1)
    done.save(tmp_path / "out")
    found = [q.dequantize() for _, q in read_weights(tmp_path / "out")]
    network = done.network
    expected = {
        str(node.args[0]): torch.ops.tersor.dequantize(*(network.tensor(part) for part in node.args[:3]), node.args[3])
        for node in network.operators()
        if node.target is torch.ops.tersor.dequantize.default
    }
    assert len(found) == len(expected) > 1
    for name, weight in expected.items():
        assert any(weight.shape == q.shape and torch.allclose(weight, q, rtol=1e-6, atol=0) for q in found), name
