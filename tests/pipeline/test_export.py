"""A quantized folder as a GGUF file: what keeps its codes, and what is said of the rest."""

import gguf
import pytest
import torch
from gguf.quants import dequantize

from tersor.errors import SavedFolderError
from tersor.numerics import QuantSpec
from tersor.pipeline.folder.export import export_gguf
from tests.checkpoints.tiny_llama import quantized, tiny_llama, write_folder

DOWN = "model.layers.0.mlp.down_proj.weight"


def exported(folder, spec, kind="q8_0"):
    model = tiny_llama()
    qtensors = quantized(model, lambda name: spec)
    kinds = export_gguf(write_folder(folder / "m", model, qtensors, "compressed-tensors"), folder / "m.gguf", kind)
    tensor = next(t for t in gguf.GGUFReader(folder / "m.gguf").tensors if t.name == "blk.0.ffn_down.weight")
    return kinds, torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()), qtensors[DOWN]


@pytest.mark.parametrize("granularity", ["group:32", "group:64", "channel"])
@pytest.mark.parametrize(("bits", "kind"), [("int3", "q4_0"), ("int4", "q4_0"), ("int8", "q8_0")])
def test_codes_are_kept_and_only_scales_are_rounded(tmp_path, granularity, bits, kind):
    kinds, values, q = exported(tmp_path, QuantSpec(bits, granularity), "f16")
    assert (kinds[DOWN], kinds["lm_head.weight"]) == (kind, "f16")
    columns = (q.spec.block or q.shape[1]) if granularity != "channel" else q.shape[1]
    assert torch.equal(values, q.codes.float() * q.scale.half().float().repeat_interleave(columns, 1))


def test_what_is_on_no_such_grid_is_rounded_again_and_said_to_be(tmp_path):
    kinds, values, q = exported(tmp_path, QuantSpec("int4", "group:32", symmetric=False))
    assert (kinds[DOWN], kinds["lm_head.weight"]) == ("q8_0, rounded again", "q8_0")
    assert 0 < (values - q.dequantize()).abs().max() < 0.02 * q.dequantize().abs().max()


def test_a_file_that_exists_is_kept(tmp_path):
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(SavedFolderError, match="--force"):
        exported(tmp_path, QuantSpec("int4", "group:32"))
    assert (tmp_path / "m.gguf").read_text() == "mine"
