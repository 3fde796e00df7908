"""LoRA adapters merged into the codes of a folder: as by hand, with PEFT's own files, and what is refused."""

import json

import pytest
import torch
import transformers
from pipeline.tiny_folders import LM, TOKENS
from safetensors.torch import load_file, save_file

import tersor
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import CheckpointError
from tersor.measure.language import read_language_report
from tersor.recipe import Quantization, Recipe
from tersor.training.language.adapters import merged

MODULE = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LM)).save_pretrained(path / "float")
    weights = Quantization(format="int4", granularity="group:16", symmetric=False)
    recipe = Recipe(name="w4", weights=weights, activations=Quantization(format="fp32"))
    tersor.compress_folder(path / "float", path / "int4", recipe, evaluate=TOKENS, progress=False)
    return path / "int4"


def adapter(path, module=MODULE, size=0.02, out=32, **config):
    """An adapter of rank 2, as PEFT would save it."""
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 32, generator=generator), size * torch.randn(out, 2, generator=generator)
    path.mkdir(exist_ok=True)
    key = f"base_model.model.{module}.lora_"
    save_file({f"{key}A.weight": a, f"{key}B.weight": b}, path / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (path / "adapter_config.json").write_text(json.dumps(known | config))
    return path, 2 * b @ a


def test_the_result_is_the_sum_rounded_in_the_folders_own_spec(folder, tmp_path):
    path, delta = adapter(tmp_path / "adapter")
    done = tersor.merge_lora(folder, path, tmp_path / "out")
    before, after = QuantizedFolder(folder), QuantizedFolder(tmp_path / "out")
    for name in before.quantized:
        ours, was = after.qtensor(name), before.qtensor(name)
        assert ours.spec == was.spec
        expected = merged(was, delta)[0] if name == f"{MODULE}.weight" else was
        assert torch.equal(ours.codes, expected.codes)
        assert torch.equal(ours.scale, expected.scale)
    line = next(w for w in done.report.weights if w.name == MODULE)
    assert line.method.endswith("adapter merged")
    assert "of its change" in line.note
    assert done.report.compressed is None
    assert read_language_report(tmp_path / "out") == done.report
    model = tersor.load(tmp_path / "out").model
    weight = model.get_submodule(MODULE).weight
    assert torch.equal(weight + 0, after.qtensor(f"{MODULE}.weight").dequantize())


def test_an_adapter_of_zeros_changes_no_byte_of_the_weights(folder, tmp_path):
    path, _ = adapter(tmp_path / "adapter", size=0.0)
    tersor.merge_lora(folder, path, tmp_path / "out")
    for file in folder.glob("*.safetensors"):
        before, after = load_file(file), load_file(tmp_path / "out" / file.name)
        assert all(torch.equal(t, after[n]) for n, t in before.items())


@pytest.mark.parametrize(
    ("config", "kinds", "said"),
    [
        ({"use_dora": True}, {}, "use_dora"),
        ({"peft_type": "IA3"}, {}, "IA3"),
        ({"init_lora_weights": "pissa"}, {}, "pissa"),
        ({}, {"module": "model.layers.9.self_attn.q_proj"}, "layers.9.self_attn.q_proj, which is no linear layer"),
        ({}, {"module": "model.norm"}, "model.norm, which is no linear layer"),
        ({}, {"out": 31}, r"\[31, 32\]"),
        ({}, {"size": float("nan")}, "NaN or infinity"),
        ({"bias": "all"}, {}, "bias: 'all'"),
    ],
)
def test_what_cannot_be_merged_is_named(folder, tmp_path, config, kinds, said):
    path, _ = adapter(tmp_path / "adapter", **kinds, **config)
    with pytest.raises(CheckpointError, match=said):
        tersor.merge_lora(folder, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_names_the_folder_as_its_base(folder):
    model = tersor.load(folder).model
    assert model.name_or_path == model.config.name_or_path == str(folder)


def test_a_float_folder_is_refused(folder, tmp_path):
    path, _ = adapter(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="is not quantized"):
        tersor.merge_lora(folder.parent / "float", path, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of PEFT
def test_an_adapter_that_peft_trained_on_the_folder_lowers_its_loss_after_the_merge_too(folder, tmp_path):
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    model = tersor.load(folder).model
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_rslora=True)
    learner = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = learner(input_ids=TOKENS, labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    learner.save_pretrained(tmp_path / "adapter")
    done = tersor.merge_lora(folder, tmp_path / "adapter", tmp_path / "out")
    with torch.no_grad():
        after = done.model(input_ids=TOKENS, labels=TOKENS).loss.item()
    assert losses[-1] < after < losses[0] - 0.5 * (losses[0] - losses[-1])


def test_a_quantized_layer_is_a_linear_layer_without_a_float_weight(folder):
    layer = tersor.load(folder).model.get_submodule(MODULE)
    assert isinstance(layer, torch.nn.Linear)
    assert layer.qweight.device == layer.weight.device
    assert list(layer.parameters()) == []
