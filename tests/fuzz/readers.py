"""Every reader of the package, with a folder that it reads: what the mutations are tried on."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tersor
from tersor.checkpoints import architecture, manifest, network, observations
from tersor.checkpoints.foreign.files import read_array
from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.read import read_weights
from tersor.checkpoints.sparse.layouts import SparseBitmask, sparsity_config
from tersor.engines import engine, load_runner
from tersor.measure import read_report
from tersor.measure.language import read_language_report
from tersor.network.capture import capture
from tersor.pipeline.folder.load import open_folder
from tersor.pipeline.folder.metamodel import MetaModel, quiet
from tersor.pipeline.folder.records import join, read_records
from tersor.recipe.recipe import resolve
from tests.fuzz import operators
from tests.fuzz.mutations import mutated

DATA = Path(__file__).parents[1] / "data/v0.1"


class Reader(NamedTuple):
    """``make`` writes a folder that ``read`` reads; ``files`` of it are changed, by (content, file name, seed)."""

    make: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    change: Callable[[bytes, str, int], bytes] = mutated


def copied(name: str) -> Callable[[Path], None]:
    return lambda folder: [shutil.copy(path, folder) for path in (DATA / name).iterdir()] and None


def weights(folder: Path) -> None:
    for _ in read_weights(folder):
        pass


def model(folder: Path) -> None:
    """What is read of a language model before its weights, then these."""
    with quiet():
        made = MetaModel(open_folder(folder))
        made.load([*made.outside(), *made.parameters(made.blocks.path)])


def verified(folder: Path) -> None:
    language = manifest.kind_of(folder) == manifest.LANGUAGE
    manifest.verify(folder, (manifest.read_language_manifest if language else manifest.read_manifest)(folder))


def loaded(name: str) -> Callable[[Path], None]:
    return lambda folder: load_runner(name, str(folder), threads=1) and None


def write_plain(folder: Path) -> None:
    """A Llama in float, in one file and an index of two."""
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=32, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    items = list(tensors.items())
    parts = {"model-1.safetensors": dict(items[:4]), "model-2.safetensors": dict(items[4:])}
    for name, part in parts.items():
        save_file(part, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')


def write_observations(folder: Path) -> None:
    from tersor.pipeline.graph.observing.observe import observables, observe
    from tersor.pipeline.graph.prepare import prepare
    from tersor.pipeline.progress import Stages
    from tersor.recipe import Quantization, Recipe

    recipe = Recipe(weights=Quantization(solver="gptq"))
    data = [(torch.randn(4, 6),)]
    task = tersor.Task("seen", nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), data[0], lambda: data)
    made = prepare(task, recipe, engine("torch").policy())
    observations.write(observe(task, made.network, observables(recipe.quantize, made), Stages(False)), folder)


def write_sparse(folder: Path) -> None:
    """A network that is stored without its zeros: by a mask, and in a pattern."""
    net = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48)).eval()
    with torch.no_grad():
        net[0].weight[torch.rand(48, 48) < 0.8] = 0
        net[2].weight.view(-1, 4)[:, :2] = 0
    network.write(capture(net, (torch.zeros(2, 48),)), folder)


def write_sparse_folder(folder: Path) -> None:
    """A Llama whose projections are stored as compressed-tensors stores zeros."""
    write_plain(folder)
    for path in folder.glob("model-*.safetensors"):
        stored = {}
        for name, tensor in load_file(path).items():
            parts = SparseBitmask().encode(name, tensor * (tensor > 0.01)) if "_proj" in name else None
            stored |= {name: tensor} if parts is None else parts
        save_file(stored, path, {"format": "pt"})
    (folder / INDEX).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = sparsity_config("sparse-bitmask", 0.9, [])
    (folder / "config.json").write_text(json.dumps(config))


class Narrow(nn.Module):
    """A class that keeps a size of its own beside those of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.into, self.norm = 8, nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.into(x)).relu().mean((2, 3)).view(-1, self.width))


def write_narrowed(folder: Path) -> None:
    """A pruning, whose files keep their checksums when they are changed."""
    data = [(torch.randn(8, 3, 6, 6),)]
    task = tersor.Task("narrow", Narrow().eval(), (torch.zeros(2, 3, 6, 6),), lambda: data)
    recipe = tersor.Recipe(steps=[{"prune": {"target": "50% channels", "rounds": 1}}, {"quantize": {}}])
    done = tersor.compress(task, recipe, "torch", report=False, progress=False)
    done.narrowed.save(folder, force=True)


def read_narrowed(folder: Path) -> None:
    """As somebody reads it who wrote the checksums, too."""
    path = folder / "manifest.json"
    before = path.read_bytes()
    try:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            told = json.loads(before)
            for name, entry in told["files"].items():
                entry["sha256"] = manifest.sha256(folder / name) if (folder / name).is_file() else entry["sha256"]
            path.write_text(json.dumps(told))
        tersor.narrow(Narrow().eval(), folder)
    finally:
        path.write_bytes(before)


def write_gguf(folder: Path) -> None:
    from tersor.checkpoints.gguf.write import write_gguf as write

    names = {f"model.layers.0.mlp.{part}_proj.weight": torch.randn(32, 32) for part in ("up", "gate", "down")}
    names |= {f"model.layers.0.self_attn.{part}_proj.weight": torch.randn(32, 32) for part in "qkvo"}
    names |= {name: torch.ones(32) for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight",
                                                "model.layers.0.post_attention_layernorm.weight")}  # fmt: skip
    names["model.embed_tokens.weight"] = torch.randn(32, 32)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": True,
    }  # fmt: skip
    write(folder / "m.gguf", config, names.items(), None)


def write_records(folder: Path) -> None:
    lines = [{"text": "a"}, {"messages": [{"role": "user", "content": "b"}]}]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))


def read_text_records(folder: Path) -> None:
    join([r for r in read_records(folder / "text.jsonl") if "messages" not in str(r[1])], None)


_LLM = "language/"
INDEX, CONFIG = "model.safetensors.index.json", ("config.json",)
READERS: dict[str, Reader] = {
    "manifest": Reader(copied("networks/torch-lstm"), ("manifest.json",), verified),
    "manifest of a language model": Reader(copied(_LLM + "gptq"), ("manifest.json",), verified),
    "network": Reader(copied("networks/torch-int8-static"), network.FILES, network.read),
    "network with an LSTM": Reader(copied("networks/torch-lstm"), network.FILES[:1], network.read),
    "network of few bits": Reader(copied("networks/torch-int4-weight"), network.FILES, weights),
    "network without its zeros": Reader(write_sparse, network.FILES, network.read),
    "folder without its zeros": Reader(write_sparse_folder, ("config.json", "model-1.safetensors"), model),
    "narrowed": Reader(write_narrowed, ("manifest.json", "model.safetensors", "check.safetensors"), read_narrowed),
    "operators": Reader(operators.write, network.FILES[:1], operators.run, operators.called),
    "report": Reader(copied("networks/torch-int8-static"), ("report.json",), lambda f: read_report(f)),
    "report of a language model": Reader(copied(_LLM + "gptq"), ("report.json",), lambda f: read_language_report(f)),
    "recipe": Reader(copied("networks/torch-rules"), ("recipe.yaml",), lambda f: resolve(f / "recipe.yaml")),
    "array": Reader(lambda f: np.save(f / "x.npy", np.ones((2, 3), "float32")), ("x.npy",),
                    lambda f: read_array(f / "x.npy")),
    "observations": Reader(write_observations, observations.FILES, observations.read),
    "index": Reader(write_plain, (INDEX,), HfFolder),
    "config": Reader(write_plain, CONFIG, model),
    "safetensors": Reader(write_plain, ("model-1.safetensors",), model),
    "compressed-tensors": Reader(copied(_LLM + "compressed-tensors-mixed"), CONFIG, weights),
    "gptq": Reader(copied(_LLM + "gptq_v2"), (*CONFIG, "model-00002-of-00002.safetensors"), weights),
    "awq": Reader(copied(_LLM + "awq"), CONFIG, weights),
    "tokenizer": Reader(write_tokenizer, ("tokenizer.json", "tokenizer_config.json", "config.json"),
                        architecture.open_tokenizer),
    "generation": Reader(copied(_LLM + "gptq"), ("generation_config.json",), architecture.generation_config),
    "records": Reader(write_records, ("text.jsonl",), read_text_records),
    "gguf": Reader(write_gguf, ("m.gguf",), weights),
    "onnx": Reader(copied("networks/onnxruntime-int8-static"), ("model.onnx",), weights),
    "onnxruntime": Reader(copied("networks/onnxruntime-int8-static"), ("model.onnx",), loaded("onnxruntime")),
    "openvino": Reader(copied("networks/openvino-int8-static"), ("model.xml", "model.bin"), loaded("openvino")),
}  # fmt: skip
# Whose work is done by another library in C++; they are left out of the quick slice.
NATIVE = ("onnxruntime", "openvino")
