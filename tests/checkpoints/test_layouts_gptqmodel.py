"""Folders of GPTQ's and AWQ's layouts, opened by GPTQModel on the CPU, where it is installed."""

import warnings

import pytest
import torch

from tersor.numerics import QuantSpec
from tests.checkpoints.tiny_llama import logits, quantized, standing_for, tiny_llama, write_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    gptqmodel = pytest.importorskip("gptqmodel")


def differing(name):
    """Two specs, and one layer that stays in float: what ``dynamic`` has to say."""
    if "layers.1.mlp.down_proj" in name:
        return None
    bits = 8 if "layers.1.self_attn" in name else 4
    return QuantSpec(f"int{bits}", "group:32", scale_dtype="float16")


def asymmetric(name):
    return QuantSpec("int4", "group:32", symmetric=False, scale_dtype="float16")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layout", "choose"),
    [("gptq", differing), ("gptq_v2", differing), ("gptq_v2", asymmetric), ("awq", asymmetric)],
)
def test_gptqmodel_computes_what_the_dequantized_model_does(layout, choose, tmp_path, shared):
    from scripts.stories260k import write

    model = tiny_llama(torch.float16)
    qtensors = quantized(model, choose)
    folder = write_folder(tmp_path / "out", model, qtensors, layout)
    for file in write(tmp_path / "stories", shared / "data/stories260k").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    kernel = gptqmodel.BACKEND.AWQ_TORCH if layout == "awq" else gptqmodel.BACKEND.GPTQ_TORCH
    open_folder = gptqmodel.GPTQModel.load(str(folder), device="cpu", backend=kernel, dtype=torch.float16).model
    expected = logits(standing_for(model, qtensors))
    assert (logits(open_folder) - expected).abs().max() < 0.02 * (logits(model) - expected).abs().max()
