"""What this version writes, tiny, for the tests of later ones: ``python scripts/write_legacy.py tests/data/vX.Y``.

Saved networks of every engine, folders of language models in every layout, the state of an eager module, and the
presets as YAML. Beside each stands ``NAME.expected.safetensors``: a fixed input and what came out. Run it with the code
of the version that the folder is named after; folders of earlier versions stay as they are.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import tersor
from tersor import Quantization, Recipe, Rule, Task
from tersor.recipe import PRESETS

# Of these folders the page is kept. The others load without it, and it can be drawn again from report.json.
PAGES = ("torch-int8-dynamic", "compressed-tensors-gpt2")
FLOAT = Quantization(format="fp32")
ENGINES = ("torch", "openvino", "onnxruntime", "tensorrt")


class Cnn(nn.Module):
    """Convolution, BatchNorm, ReLU, a residual sum, a pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.conv_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.conv_norm(self.conv(x)))
        return self.head(self.pool(x).flatten(1))


class Mlp(nn.Module):
    """Three linear layers, the first of 128 inputs, as many as OpenVINO quantizes at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(128, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


class Words(nn.Module):
    """Called by keywords; reads integers and floats, and has two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.label = nn.Embedding(16, 8), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor, features: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.mix(torch.cat([self.embed(words).mean(1), features], 1)))
        return {"label": self.label(hidden), "hidden": hidden}


class Reader(nn.Module):
    """An LSTM, which is written out in steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def write_networks(out: Path) -> None:
    """Every engine with int8-static; the kinds of weights and activations; keywords; a recurrent network."""
    for engine in ENGINES:
        write_network(out / f"{engine}-int8-static", Cnn(), drawn(1, 8, 8), "int8-static", engine)
    write_network(out / "torch-rules", Cnn(), drawn(1, 8, 8), rules(), "torch")
    write_network(out / "torch-casts", Mlp(), drawn(128), casts(), "torch", report=False)
    for name in ("int8-dynamic", "int8-weight", "int4-weight"):
        write_network(out / f"torch-{name}", Mlp(), drawn(128), name, "torch")
    for engine in ("openvino", "onnxruntime"):
        for name in ("int8-dynamic", "int4-weight"):
            write_network(out / f"{engine}-{name}", Mlp(), drawn(128), name, engine)
    for engine in ("torch", "onnxruntime"):
        write_network(out / f"{engine}-lstm", Reader(), drawn(3, 8), "int8-dynamic", engine, report=False)
    torch.manual_seed(1)
    inputs = {"words": torch.randint(0, 16, (16, 5)), "features": torch.randn(16, 4)}
    write_network(out / "torch-keywords", Words(), inputs, "int8-static", "torch")


def drawn(*shape: int) -> Tensor:
    """A batch of 16."""
    return torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))


def rules() -> Recipe:
    """int4 in groups, and layers in float formats."""
    return Recipe(
        name="rules",
        weights=Quantization(format="int4", granularity="group:12", range="mse"),
        rules=(
            Rule(layer="@first", keep="fp32"),
            Rule(op="max_pool2d", keep="fp32"),
            Rule(op="add", keep="bf16"),
            Rule(layer="head", weights=Quantization(format="int8", granularity="channel")),
        ),
        seed=3,
    )


def casts() -> Recipe:
    """Weights in small floats and signs, activations in a small float and in 16 bits at run time."""
    wide = Quantization(format="int16", range="runtime")
    return Recipe(
        name="casts",
        weights=Quantization(format="fp8_e4m3", granularity="channel"),
        activations=Quantization(format="fp8_e4m3"),
        bias_correction=False,
        rules=(
            Rule(layer="middle", weights=Quantization(format="binary", granularity="channel"), activations=wide),
            Rule(layer="last", keep="bf16"),
        ),
    )


def write_network(
    folder: Path,
    model: nn.Module,
    inputs: Tensor | dict[str, Tensor],
    recipe: Recipe | str,
    engine: str,
    report: bool = True,
) -> None:
    """Compress, judged by whether each answer is the network's own; save; note what it gives for three inputs."""
    revived(model, inputs)
    labels = labelled(called(model, inputs))
    keywords = isinstance(inputs, dict)

    def cut(count: int):
        return {k: x[:count] for k, x in inputs.items()} if keywords else (inputs[:count],)

    task = Task(
        name=folder.name,
        model=model,
        example=cut(1),
        calibration=lambda: [inputs if keywords else (inputs,)],
        evaluate=lambda predict: (labelled(called(predict, inputs)) == labels).float(),
        metric="accuracy",
    )
    done = tersor.compress(task, recipe, engine, threads=1, report=report, progress=False)
    done.save(folder)
    forget_page(folder)
    few = cut(3)
    few = tuple(few.values()) if isinstance(few, dict) else few
    out = tersor.load(folder, threads=1)(*few)
    expect(folder, few, (out,) if isinstance(out, Tensor) else out)


def revived(model: nn.Module, inputs: Tensor | dict[str, Tensor]) -> None:
    """Random weights, the same every time, and BatchNorms that have seen the inputs."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.train()
    called(model, inputs)
    model.eval()


@torch.no_grad()
def called(predict, inputs: Tensor | dict[str, Tensor]):
    """By keywords or by position."""
    return predict(**inputs) if isinstance(inputs, dict) else predict(inputs)


def labelled(out) -> Tensor:
    """The likeliest class of each sample."""
    out = out["label"] if isinstance(out, dict) else out
    out = out[0] if isinstance(out, tuple) else out
    return out.argmax(1)


def write_language(out: Path) -> None:
    """Every layout, and weights pruned but float; one with a perplexity; rules; weights that stand transposed."""
    tokens = torch.randint(3, 32, (8, 16), generator=torch.Generator().manual_seed(1))
    judged = torch.randint(3, 32, (2, 16), generator=torch.Generator().manual_seed(2))
    write_folder(out / "compressed-tensors", llama(), "int4-gptq", tokens, evaluate=judged)
    write_folder(out / "compressed-tensors-mixed", llama(blocks=1), mixed(), tokens)
    write_folder(out / "compressed-tensors-gpt2", gpt2(), "int8-weight", None)
    write_folder(out / "gptq", llama(torch.float16), gptq("int4", True), tokens, layout="gptq")
    write_folder(out / "gptq_v2", llama(torch.float16, 1), gptq("int4", False), tokens, layout="gptq_v2")
    write_folder(out / "awq", llama(torch.float16, 1), "int4-awq", tokens, layout="awq")
    write_folder(out / "sparse", llama(torch.bfloat16), "sparse-2:4", tokens)


def gptq(kind: str, symmetric: bool) -> Recipe:
    """Solved in groups of 32."""
    weights = Quantization(format=kind, granularity="group:32", symmetric=symmetric, range="mse", solver="gptq")
    return Recipe(name=f"{kind}-gptq", weights=weights, activations=FLOAT, bias_correction=False)


def mixed() -> Recipe:
    """All that a recipe of folders can ask for at once: bits by rules, a turned residual stream, the head too."""
    fine = Quantization(format="int8", granularity="channel", range="mse")
    return Recipe(
        name="mixed",
        weights=Quantization(format="int3", granularity="channel", symmetric=False, range="mse", solver="gptq"),
        activations=FLOAT,
        bias_correction=False,
        rotate=True,
        fallback="float",
        rules=(
            Rule(layer="*.v_proj", weights=fine),
            Rule(layer="lm_head", weights=fine),
            Rule(layer="*.up_proj", keep="fp32"),
        ),
    )


def llama(dtype: torch.dtype = torch.float32, blocks: int = 2) -> nn.Module:
    """Blocks of width 32, and 32 words."""
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def gpt2() -> nn.Module:
    """Its weights are [in, out]."""
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=32, n_layer=1, n_head=4, n_positions=32, initializer_range=0.2, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval()


def write_folder(folder: Path, model: nn.Module, recipe: Recipe | str, tokens: Tensor | None, **options) -> None:
    """Compress a folder of the model, and note the logits of a sentence."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / folder.name
        model.save_pretrained(source)
        tersor.compress_folder(source, folder, recipe, tokens, progress=False, **options)
    forget_page(folder)
    ids = torch.randint(3, 32, (1, 10), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expect(folder, (ids,), (tersor.load(folder)(ids).logits.float(),))


def write_eager(out: Path) -> None:
    """The state of a module that ``quantize_dynamic`` gave back."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True)).eval()
    small = tersor.quantize_dynamic(model)
    out.mkdir(parents=True)
    save_file({k: t.contiguous() for k, t in small.state_dict().items()}, out / "dynamic.safetensors")
    ids = torch.randint(0, 16, (3, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expect(out / "dynamic", (ids,), (small(ids)[0],))


def write_presets(out: Path) -> None:
    """Every preset as the YAML that folders hold."""
    out.mkdir(parents=True, exist_ok=True)
    for name, preset in PRESETS.items():
        (out / f"preset-{name.replace(':', '-')}.yaml").write_text(preset().to_yaml(), encoding="utf8")


def expect(folder: Path, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Write what goes in and what comes out beside the folder, not into it, where nobody expects it."""
    tensors = {f"input.{k}": x.contiguous() for k, x in enumerate(inputs)}
    tensors |= {f"output.{k}": x.contiguous() for k, x in enumerate(outputs)}
    save_file(tensors, folder.with_name(f"{folder.name}.expected.safetensors"))


def forget_page(folder: Path) -> None:
    """Leave out what is large and need not be shipped."""
    if folder.name not in PAGES:
        (folder / "report.html").unlink(missing_ok=True)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for part, write in (("networks", write_networks), ("language", write_language), ("eager", write_eager)):
        shutil.rmtree(target / part, ignore_errors=True)
        write(target / part)
    write_presets(target / "recipes")
    print(f"written to {target} by tersor {tersor.__version__}, {Path(tersor.__file__).parent}")
