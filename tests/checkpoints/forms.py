"""Weights written in every form that Tersor writes, as the conformance suite needs them: many, of any kind, at once.

As a program, ``python -m tests.checkpoints.forms FOLDER`` writes all forms of CANDIDATES under the folder.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, fx

from tersor.checkpoints import network as network_files
from tersor.checkpoints.gguf.write import write_gguf
from tersor.checkpoints.layouts import LAYOUTS
from tersor.checkpoints.onnx.qdq import Style, to_onnx, write_onnx
from tersor.checkpoints.tensors import save_tensors
from tersor.errors import TersorError
from tersor.network.network import Network, finish
from tersor.numerics import QTensor, QuantSpec, expand, quantize_tensor

SHAPES = [(32, 64), (1, 64), (32, 48), (12, 51)]
GRANULARITIES = ["tensor", "channel", "channel:1", "group:16", "group:32", "filters:4"]
INTEGERS = ["int2", "int3", "int4", "int8", "int16", "uint1", "uint2", "uint3", "uint4", "uint8"]
OTHERS = ["binary", "ternary", "fp8_e4m3", "fp8_e5m2"]


def weight_of(spec: QuantSpec, shape: tuple[int, ...], seed: int = 0) -> QTensor:
    """A weight whose row 1, where there is one, is all zero; integers take every code and zero point of the spec."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    values[1:2] = 0
    if spec.format.kind != "int":
        return quantize_tensor(values, spec)
    scales = spec.granularity.scale_shape(shape)
    codes = torch.randint(spec.low, spec.high + 1, shape, generator=generator)
    zeros = torch.zeros(scales)
    if not spec.symmetric:
        zeros = torch.randint(spec.low, spec.high + 1, scales, generator=generator).float()
    codes[1:2] = expand(zeros, shape, spec.block).expand(shape)[1:2].long()
    scale = (torch.rand(scales, generator=generator) + 0.01).to(getattr(torch, spec.scale_dtype)).float()
    return QTensor(codes.to(spec.format.dtype), scale, zeros, spec)


def specs(formats: list[str], granularities: list[str] = GRANULARITIES) -> list[QuantSpec]:
    """Every combination that exists, with the scales that all forms store exactly."""
    return [
        QuantSpec(format, granularity, symmetric, scale_dtype="float16")
        for format in formats
        for granularity in granularities
        for symmetric in (True, False)
        if symmetric or format in INTEGERS
    ]


def _candidates() -> dict[str, QTensor]:
    """Few weights that still hold every format, granularity and shape, and convolutions."""
    grouped = specs(["int4"], ["group:32"])
    found = [weight_of(spec, shape, seed=5) for spec in grouped for shape in SHAPES]
    for k, spec in enumerate(specs(INTEGERS + OTHERS)[::3]):
        found.append(weight_of(spec, SHAPES[(k + k // 4) % len(SHAPES)], seed=k))
    for format, granularity, shape in (
        ("int8", "channel", (8, 32, 3, 3)), ("int4", "channel", (8, 4, 3, 3)), ("int8", "group:2", (8, 4, 3, 3)),
        ("int8", "channel:1", (8, 4, 3, 3)),
    ):  # fmt: skip
        found.append(weight_of(QuantSpec(format, granularity, scale_dtype="float16"), shape, seed=len(found)))
    return {f"model.layers.{k}.mlp.up_proj.weight": q for k, q in enumerate(found)}


CANDIDATES = _candidates()


def write_layout(name: str, weights: Mapping[str, QTensor], folder: Path) -> None:
    """A folder of quantized weights alone, without a model around them."""
    layout = LAYOUTS[name]
    tensors = [layout.encode(weight, q, torch.float16) for weight, q in weights.items()]
    config = layout.config({weight: q.spec for weight, q in weights.items()}, ["lm_head"])
    save_tensors({k: t for one in tensors for k, t in one.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"dtype": "float16", "quantization_config": config}))


def network_of(weights: Mapping[str, QTensor]) -> Network:
    """For each weight a linear layer or a convolution, which reads an input of its own."""
    graph, tensors, outputs, example = fx.Graph(), torch.nn.Module(), [], []
    inputs = [graph.placeholder(f"x{k}") for k in range(len(weights))]
    for x, (name, q) in zip(inputs, weights.items(), strict=True):
        short = name.removesuffix(".weight").replace(".", "_")
        parts = [graph.get_attr(_register(tensors, f"{short}_{kind}", getattr(q, kind)))
                 for kind in ("codes", "scale", "zero_point")]  # fmt: skip
        call = torch.ops.tersor.dequantize.default
        weight = graph.create_node("call_function", call, (*parts, q.spec.block), {}, f"{short}_dequantized")
        weight.meta.update(title=name.removesuffix(".weight"), quantizer=True, bits=q.spec.format.bits)
        layer = torch.ops.aten.linear.default if len(q.shape) == 2 else torch.ops.aten.conv2d.default
        outputs.append(graph.create_node("call_function", layer, (x, weight), {}, short))
        example.append(torch.zeros(2, q.shape[1], *[8] * (len(q.shape) - 2)))
    graph.output(tuple(outputs))
    module = fx.GraphModule(tensors, graph)
    names = (tuple(node.name for node in nodes) for nodes in (inputs, outputs))
    return finish(Network(module, *names, tuple(example)))


def _register(owner: torch.nn.Module, name: str, tensor: Tensor) -> str:
    owner.register_buffer(name, tensor)
    return name


def write_network(weights: Mapping[str, QTensor], folder: Path) -> None:
    network_files.write(network_of(weights), folder)


def write_qdq(style: Style, weights: Mapping[str, QTensor], folder: Path) -> None:
    write_onnx(to_onnx(network_of(weights), style), folder)


def write_llama(weights: Mapping[str, QTensor], folder: Path) -> None:
    """A Llama whose other tensors are float, small and none of the suite's business."""
    count = 1 + max((int(name.split(".")[2]) for name in weights), default=0)
    config = {
        "model_type": "llama", "vocab_size": 4, "hidden_size": 32, "intermediate_size": 32, "rms_norm_eps": 1e-5,
        "num_hidden_layers": count, "num_attention_heads": 2, "max_position_embeddings": 8,
    }  # fmt: skip
    other = {"model.embed_tokens.weight": (4, 32), "model.norm.weight": (32,), "lm_head.weight": (4, 32)}
    layers = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    for k in range(count):
        other |= {f"model.layers.{k}.{layer}.weight": (32, 32) for layer in layers}
        other |= {f"model.layers.{k}.{norm}.weight": (32,) for norm in ("input_layernorm", "post_attention_layernorm")}
    tensors = {**weights, **{name: torch.ones(shape) for name, shape in other.items() if name not in weights}}
    write_gguf(folder / "model.gguf", config, tensors.items(), None, kind="f16")


@dataclass(frozen=True)
class Form:
    """How weights are written, and which ones are tried."""

    write: Callable[[Mapping[str, QTensor], Path], object]
    candidates: Mapping[str, QTensor] = field(default_factory=lambda: CANDIDATES)


# Exporting a graph takes a tenth of a second for each weight.
_FEW = {name: q for k, (name, q) in enumerate(CANDIDATES.items()) if k % 5 == 3 or k in (0, 1, 10, 45, 46) or k >= 49}
FORMS: dict[str, Form] = {
    **{name: Form(partial(write_layout, name)) for name in LAYOUTS},
    "network": Form(write_network),
    "onnx": Form(partial(write_qdq, Style()), _FEW),
    "onnx, packed": Form(partial(write_qdq, Style(packed=True)), _FEW),
    "gguf": Form(write_llama),
}


def write_all(form: Form, folder: Path) -> tuple[dict[str, QTensor], dict[str, str]]:
    """The candidates that the form takes, written into a new folder, and the errors about the others by name."""
    weights, refused = dict(form.candidates), {}
    while weights:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            form.write(weights, folder)
        except TersorError as error:
            # Of two that cannot stand in one file the last is left out.
            words = set(re.split(r"[\s:,;()]+", str(error)))
            named = [name for name in weights if words & {name, name.removesuffix(".weight")}]
            if not named:
                raise AssertionError(f"no layer is named: {error}") from error
            refused[named[-1]] = str(error)
            del weights[named[-1]]
        else:
            break
    return weights, refused


if __name__ == "__main__":
    for form, one in FORMS.items():
        write_all(one, Path(sys.argv[1]) / form)
