"""Folders that Tersor writes, opened by their ecosystems' own readers, tensor by tensor and logit by logit."""

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from tersor.checkpoints.layouts import LAYOUTS
from tersor.numerics import QuantSpec
from tests.checkpoints.tiny_llama import logits, quantized, standing_for, tiny_llama, write_folder


def one(spec):
    return lambda name: spec


def mixed(name, symmetric=True):
    """Four specs, and one layer that stays in float."""
    if "layers.1.self_attn.v_proj" in name:
        return None
    if "down_proj" in name:
        return QuantSpec("int8", "channel", scale_dtype="bfloat16")
    granularity = "group:16" if "layers.0" in name else "group:32"
    return QuantSpec("int3" if "o_proj" in name else "int4", granularity, symmetric, scale_dtype="bfloat16")


CASES = {
    "int4 groups": (torch.float16, 192, one(QuantSpec("int4", "group:32", scale_dtype="float16"))),
    "int4 asymmetric, ragged rows": (torch.float32, 172, one(QuantSpec("int4", "channel", symmetric=False))),
    "int8": (torch.bfloat16, 172, one(QuantSpec("int8", "channel", scale_dtype="bfloat16"))),
    "mixed": (torch.bfloat16, 192, mixed),
}
# transformers 5.23 opens no asymmetric weights of several groups.
MORE = {"mixed, asymmetric": (torch.bfloat16, 192, lambda name: mixed(name, symmetric=False))}


def needs_dense(qtensors):
    """Whether transformers opens it only as it loads, for it expects zero points on the way that are not packed."""
    return any(not q.spec.symmetric for q in qtensors.values())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("case", CASES)
def test_transformers_opens_compressed_tensors(case, tmp_path):
    dtype, hidden, choose = CASES[case]
    model = tiny_llama(dtype, hidden)
    qtensors = quantized(model, choose)
    assert qtensors
    expected = standing_for(model, qtensors)
    assert not torch.allclose(logits(model), logits(expected)), "a reader that ignored the codes would pass"
    folder = write_folder(tmp_path / "out", model, qtensors, "compressed-tensors")
    dense = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if needs_dense(qtensors) else {}
    open_folder, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **dense)
    assert not any(report.values()), report
    assert torch.equal(logits(open_folder), logits(expected))


@pytest.mark.parametrize("case", CASES | MORE)
def test_compressed_tensors_itself_reads_the_same_values(case, tmp_path):
    dtype, hidden, choose = (CASES | MORE)[case]
    model = tiny_llama(dtype, hidden)
    qtensors = quantized(model, choose)
    settings = LAYOUTS["compressed-tensors"].config({n: q.spec for n, q in qtensors.items()}, [])
    schemes = QuantizationConfig.model_validate(settings).config_groups.values()
    tensors = load_file(write_folder(tmp_path / "out", model, qtensors, "compressed-tensors") / "model.safetensors")
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    for name, q in qtensors.items():
        layer = name.removesuffix(".weight")
        scheme = next(s for s in schemes if layer in s.targets or s.targets == ["Linear"])
        state = {k.removeprefix(f"{layer}."): t for k, t in tensors.items() if k.startswith(f"{layer}.")}
        assert torch.equal(compressor.decompress(state, scheme)["weight"], q.dequantize().to(dtype)), name
