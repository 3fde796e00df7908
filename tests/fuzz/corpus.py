"""Folders that somebody made on purpose, each with what must come of it: an error of ours, or the right result."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

INDEX = "model.safetensors.index.json"


class Case(NamedTuple):
    """``change`` makes the good folder ``base`` hostile; ``use`` reads it, which gives an error or, if None, does not."""

    base: str
    change: Callable[[Path], Any]
    use: str
    error: str | None


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    """Set keys of a JSON file; a value of ... deletes its key."""

    def change(folder: Path) -> None:
        path = folder / name
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({k: v for k, v in (data | values).items() if v is not ...}))

    return change


def text(name: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda f: (f / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def both(*changes: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda folder: [change(folder) for change in changes] and None


def outside(folder: Path) -> Path:
    """A file beside the folder that must not be read."""
    return folder.parent / "outside"


def link(name: str, to: str | None = None) -> Callable[[Path], None]:
    """A link in place of a file: to another path, or to the file itself, moved outside."""

    def change(folder: Path) -> None:
        path = folder / name
        target = Path(to) if to else outside(folder) / name
        if not to and path.exists():
            shutil.move(path, target)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


def weight_map(name: str) -> Callable[[Path], None]:
    """An index that names one shard; the shard itself lies outside."""

    def change(folder: Path) -> None:
        shutil.move(folder / "model.safetensors", outside(folder) / "model.safetensors")
        place = name.format(outside=outside(folder))
        (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": place}}))

    return change


EVIL = 'import os\nopen(os.environ["TERSOR_RAN"], "w").write("ran")\n'


def code(name: str = "evil.py") -> Callable[[Path], Any]:
    return text(name, EVIL + "class Evil: pass\nclass EvilConfig: pass\ndef generate(*a, **k): pass\n")


def mapped(name: str, key: str, value: Any, **others: Any) -> Callable[[Path], None]:
    return both(code(), code("__init__.py"), edit(name, auto_map={key: value}, **others))


def node(**values: Any) -> Callable[[Path], None]:
    """Change the first operator of a network.json."""

    def change(folder: Path) -> None:
        path = folder / "network.json"
        graph = json.loads(path.read_text())
        next(n for n in graph["nodes"] if n["op"] == "call_function").update(values)
        path.write_text(json.dumps(graph))

    return change


def shape(*sizes: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "network.json"
        graph = json.loads(path.read_text())
        graph["inputs"][0]["shape"] = list(sizes)
        path.write_text(json.dumps(graph))

    return change


def header(**tensors: Any) -> Callable[[Path], Any]:
    """A model.safetensors of a header alone."""
    content = json.dumps(tensors).encode()
    return text("model.safetensors", struct.pack("<Q", len(content)) + content + b"\x00" * 64)


def external(location: str) -> Callable[[Path], None]:
    """An ONNX file whose weight is said to stand in another file."""

    def change(folder: Path) -> None:
        import onnx

        (outside(folder) / "secret.bin").write_bytes(b"\x01" * 4096)
        model = onnx.load(str(folder / "model.onnx"))
        tensor = next(t for t in model.graph.initializer if t.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location.format(outside=outside(folder)), "offset": "0", "length": "4096"}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return change


def snapshot(honest: bool) -> Callable[[Path], None]:
    """The folder as in the cache of Hugging Face: links to blobs, which lie there or, dishonestly, elsewhere."""

    def change(folder: Path) -> None:
        kept = folder.parent / "kept"
        folder.rename(kept)
        real = folder / "snapshots/0f"
        real.mkdir(parents=True)
        blobs = folder / "blobs"
        if honest:
            blobs.mkdir()
        else:
            blobs.symlink_to(outside(folder))
        for path in kept.iterdir():
            shutil.move(path, blobs / path.name)
            (real / path.name).symlink_to(Path("../../blobs") / path.name)

    return change


def npy(description: str) -> bytes:
    content = description.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + b"\x00" * 16


def bomb(names: str = "abcdefgh") -> str:
    lines = [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in pairwise(names)]
    return "\n".join(["a: &a [x]", *lines])


def groups(target: str, **weights: Any) -> Callable[[Path], None]:
    """Other targets and arguments in each group of a quantization_config."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for group in config["quantization_config"]["config_groups"].values():
            group["targets"] = [target]
            group["weights"] |= weights
        path.write_text(json.dumps(config))

    return change


def remote(key: str, value: Any) -> Callable[[Path], None]:
    return both(code(), edit("config.json", **{key: value}))


CODE = {
    "config names code of a known kind": Case("plain", mapped("config.json", "AutoConfig", "evil.EvilConfig"), "load", None),
    "model code of a known kind": Case("plain", mapped("config.json", "AutoModelForCausalLM", "evil.Evil"), "load", None),
    "config names code of its own kind": Case(
        "plain", mapped("config.json", "AutoConfig", "evil.EvilConfig", model_type="evil"), "load", "not executed"
    ),
    "code of another repository": Case(
        "plain", mapped("config.json", "AutoConfig", "evil/repo--evil.EvilConfig", model_type="evil"), "load", "executed"
    ),
    "tokenizer names code": Case(
        "plain", mapped("tokenizer_config.json", "AutoTokenizer", ["evil.Evil", "evil.Evil"]), "tokens", None
    ),
    "tokenizer of its own class": Case(
        "plain", mapped("tokenizer_config.json", "AutoTokenizer", [None, "evil.Evil"], tokenizer_class="Evil"), "tokens", None
    ),
    "tokenizer code as a list": Case(
        "plain", both(code(), edit("tokenizer_config.json", auto_map=["evil.Evil", None])), "tokens", None
    ),
    "config names code of a tokenizer": Case("plain", mapped("config.json", "AutoTokenizer", ["evil.Evil"] * 2), "tokens", None),
    "processor names code": Case("plain", mapped("processor_config.json", "AutoProcessor", "evil.Evil"), "tokens", None),
    "generation names code": Case(
        "plain", mapped("generation_config.json", "AutoModel", "evil.Evil", custom_generate="."), "generate", None
    ),
    "a folder of custom generation": Case(
        "plain", lambda f: [(f / "custom_generate").mkdir(), code("custom_generate/generate.py")(f)], "generate", None
    ),
    "a module of Python named as transformers": Case("plain", code("transformers.py"), "load", None),
    "an architecture that is a function": Case("plain", remote("architectures", ["pipeline"]), "load", None),
    "an architecture that is no name": Case("plain", remote("architectures", ["__class__", 5, "os.system"]), "load", None),
    "kernels of a hub": Case("plain", remote("_attn_implementation", "evil/kernel"), "load", None),
    "kernels of a hub, public": Case("plain", remote("attn_implementation", {"": "evil/kernel"}), "load", None),
    "experts of a hub": Case("plain", remote("experts_implementation", "evil/kernel"), "load", None),
    "trust asked for by the config": Case("plain", remote("trust_remote_code", True), "load", None),
    "another method of quantizing": Case(
        "plain", remote("quantization_config", {"quant_method": "evil"}), "load", "unsupported layout"
    ),
    "a method that is a list": Case("plain", remote("quantization_config", {"quant_method": ["gptq"]}), "load", "quant_method"),
    "a template that looks for classes": Case(
        "plain", text("chat_template.jinja", "{{ messages.__class__.__mro__[1].__subclasses__() }}"), "chat", "chat template"
    ),
    "a template that imports": Case(
        "plain", text("chat_template.jinja", "{{ cycler.__init__.__globals__.os.system('id') }}"), "chat", "chat template"
    ),
    "a pickle alone": Case(
        "plain", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "load", "is a pickle, which can run code"
    ),
    "an index of pickles": Case(
        "plain", both(weight_map("pytorch_model.bin"), text("pytorch_model.bin", b"\x80\x04.")), "load", "no safetensors file"
    ),
    "a pickle named safetensors": Case("plain", text("model.safetensors", b"\x80\x04cos\nsystem\n(S'id'\ntR."), "load", "read"),
    "a pickle beside": Case("plain", text("training_args.bin", b"\x80\x04cos\nsystem\n(S'id'\ntR."), "load", None),
}
PATHS = {
    "a shard above": Case("plain", weight_map("../outside/model.safetensors"), "load", "outside its folder"),
    "a shard above, around": Case("plain", weight_map("x/../../outside/model.safetensors"), "load", "outside its folder"),
    "an absolute shard": Case("plain", weight_map("{outside}/model.safetensors"), "load", "outside its folder"),
    "a shard with a zero byte": Case("plain", weight_map("a\x00b.safetensors"), "load", "outside its folder"),
    "a shard with backslashes": Case("plain", weight_map("..\\outside\\model.safetensors"), "load", "outside its folder"),
    "a shard that is a number": Case("plain", text(INDEX, '{"weight_map": {"a": 5}}'), "index", "weight_map"),
    "a linked shard": Case("plain", link("model.safetensors"), "load", "is a link"),
    "a linked config": Case("plain", link("config.json"), "load", "is a link"),
    "a linked tokenizer": Case("plain", link("tokenizer.json"), "tokens", "is a link"),
    "a linked template": Case("plain", link("chat_template.jinja", "/etc/hostname"), "tokens", "is a link"),
    "a linked generation config": Case("plain", link("generation_config.json"), "generate", "is a link"),
    "a link to itself": Case("plain", link("config.json", "config.json"), "load", "config.json"),
    "a linked device": Case("plain", link("model.safetensors", "/dev/zero"), "load", "is a link"),
    "a pipe": Case("plain", both(lambda f: (f / "config.json").unlink(), lambda f: os.mkfifo(f / "config.json")), "load", "neither a"),
    "a folder as config": Case(
        "plain", both(lambda f: (f / "config.json").unlink(), lambda f: (f / "config.json").mkdir()), "load", "config.json"
    ),
    "a snapshot of the cache": Case("plain", snapshot(True), "snapshot", None),
    "a snapshot whose blobs are elsewhere": Case("plain", snapshot(False), "snapshot", "is a link"),
    "the tokenizer's own file elsewhere": Case(
        "plain", edit("tokenizer_config.json", tokenizer_file="/etc/passwd", vocab_file="/etc/passwd"), "tokens", None
    ),
    "another tokenizer above": Case(
        "plain", edit("tokenizer_config.json", fast_tokenizer_files=["../outside/tokenizer.1.json"]), "tokens", None
    ),
    "a manifest above": Case(
        "network", edit("manifest.json", files={"../outside": {"sha256": "0", "shipped": True}}), "load", "outside its folder"
    ),
    "a linked network": Case("network", link("network.json"), "load", "is a link"),
    "ONNX data above": Case("onnx", external("../outside/secret.bin"), "weights", "cannot be read"),
    "absolute ONNX data": Case("onnx", external("{outside}/secret.bin"), "weights", "cannot be read"),
    "ONNX data above, in the engine": Case("onnx", external("../outside/secret.bin"), "engine", "ONNX file"),
}
SIZES = {
    "10⁹ layers": Case("plain", edit("config.json", num_hidden_layers=10**9), "load", "num_hidden_layers is 1000000000"),
    "10⁹ layers as a float": Case("plain", edit("config.json", num_hidden_layers=1e9), "load", "num_hidden_layers is 1000000000"),
    "layers of text": Case("plain", edit("config.json", num_hidden_layers="many"), "load", "does not describe"),
    "-1 layers": Case("plain", edit("config.json", num_hidden_layers=-1), "load", ""),
    "10¹² tokens": Case("plain", edit("config.json", vocab_size=10**12), "load", "vocab_size is 1000000000000"),
    "10⁷ tokens": Case("plain", edit("config.json", vocab_size=10**7), "load", "larger parts"),
    "10¹² wide": Case("plain", edit("config.json", hidden_size=10**12), "load", "hidden_size is"),
    "10¹⁵ positions": Case("plain", edit("config.json", max_position_embeddings=10**15), "load", "max_position_embeddings is"),
    "no heads": Case("plain", edit("config.json", num_attention_heads=0), "load", ""),
    "beyond 64 bits": Case("plain", edit("config.json", intermediate_size=10**25), "load", "intermediate_size is"),
    "not a number": Case("plain", edit("config.json", rms_norm_eps=float("nan"), initializer_range="x"), "load", ""),
    "a large input": Case("network", shape(1, 10**9), "network", "more than 1024 MiB"),
    "a large constant": Case("network", node(target="aten.full.default", args=[[10**12], 0.0]), "network", "bytes, more"),
    "memory that nobody wrote": Case(
        "network", node(target="aten.empty.memory_format", args=[[4]]), "network", "not allowed in a saved network"
    ),
    "a sparse tensor of anything": Case(
        "network", node(target="aten._sparse_coo_tensor_unsafe.default", args=[]), "network", "not allowed in a saved network"
    ),
    "a file that is written": Case("network", node(target="aten.save.default", args=["x"]), "network", "not allowed"),
    "random numbers": Case("network", node(target="aten.manual_seed.default", args=[1]), "network", "not allowed"),
    "a header longer than its file": Case("plain", text("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "load", "read"),
    "a tensor beyond its file": Case(
        "plain", header(a={"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}), "load", "read"
    ),
    "a shape that overflows": Case(
        "plain", header(a={"dtype": "F32", "shape": [2**62, 4, 0], "data_offsets": [0, 0]}), "load", ""
    ),
    "10⁹ beams": Case("plain", edit("generation_config.json", num_beams=10**9), "generate", "num_beams"),
    "deep JSON": Case("plain", text("config.json", "[" * 4000 + "]" * 4000), "load", "nested more than 64 deep"),
    "JSON a little deep": Case("plain", edit("config.json", x=json.loads("[" * 90 + "]" * 90)), "load", "nested more than 64"),
    "a list as config": Case("plain", text("config.json", "[]"), "load", "does not hold a JSON object"),
    "another encoding": Case("plain", text("config.json", b'{"model_type": "caf\xe9"}'), "load", "not valid JSON"),
    "a long number": Case("plain", text("config.json", '{"hidden_size": ' + "9" * 5000 + "}"), "load", "not valid JSON"),
    "a pattern that goes back": Case("quantized", groups("re:(.*)*(.*)*(.*)*(.*)*x$"), "weights", "no group"),
    "a pattern that looks back": Case("quantized", groups("re:(a)\\1"), "weights", "the pattern"),
    "groups of -5": Case("quantized", groups("Linear", group_size=-5), "weights", "group_size"),
    "60 bits": Case("quantized", groups("Linear", num_bits=60), "weights", "num_bits"),
    "a recipe of aliases": Case("network", text("recipe.yaml", bomb()), "recipe", "more than 8000 values"),
    "an array of 10¹² numbers": Case(
        "empty", text("x.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}")), "array", "npy"
    ),
    "an array of objects": Case(
        "empty", lambda f: np.save(f / "x.npy", np.array([{}], dtype=object), allow_pickle=True), "array", "objects of Python"
    ),
    "a GGUF file of 2⁶³ tensors": Case(
        "empty", text("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63)), "weights", "GGUF"
    ),
    "a GGUF text of 2⁶² bytes": Case(
        "empty", text("m.gguf", b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2**62)), "weights", "GGUF"
    ),
    "a GGUF list of lists": Case(
        "empty", text("m.gguf", b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1) + b"k" + struct.pack("<I", 9) +
                      struct.pack("<IQ", 9, 1) * 700), "weights", "GGUF",
    ),
}  # fmt: skip
CASES = CODE | PATHS | SIZES
