"""A tiny Llama with random weights, and folders of it with quantized weights: what readers are tried on."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tersor.checkpoints.layouts import LAYOUTS
from tersor.numerics import QTensor, QuantSpec, quantize_tensor

TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))


def tiny_llama(dtype: torch.dtype = torch.float32, hidden: int = 192, vocab: int = 96, **changes) -> LlamaForCausalLM:
    """Two blocks; weights are large enough that the logits tell every wrong one."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        **changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        # The rotary frequencies are no parameter: readers keep them in float32.
        parameter.data = parameter.data.to(dtype)
    return model


def quantized(model: LlamaForCausalLM, choose) -> dict[str, QTensor]:
    """The weights of the blocks' linear layers, with the spec that ``choose`` gives to the name, or None."""
    found = {}
    for name, weight in model.state_dict().items():
        spec: QuantSpec | None = choose(name) if name.endswith("_proj.weight") else None
        if spec is not None:
            found[name] = quantize_tensor(weight, spec)
    return found


def write_folder(folder: Path, model: LlamaForCausalLM, qtensors: dict[str, QTensor], layout: str) -> Path:
    """The model with ``qtensors`` in place of their weights."""
    dtype, state = model.dtype, model.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensors |= LAYOUTS[layout].encode(name, qtensors[name], dtype) if name in qtensors else {name: tensor}
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    left = [n for n in linear if f"{n}.weight" not in qtensors]
    settings = LAYOUTS[layout].config({n: q.spec for n, q in qtensors.items()}, left)
    folder.mkdir(exist_ok=True)
    save_file({k: t.clone() for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": settings}
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def standing_for(model: LlamaForCausalLM, weights: Mapping[str, QTensor | Tensor]) -> LlamaForCausalLM:
    """The float model with the values that ``weights`` stand for."""
    floats = {name: w.dequantize() if isinstance(w, QTensor) else w for name, w in weights.items()}
    values = {name: w.to(model.dtype) for name, w in floats.items()}
    changed = deepcopy(model)
    changed.load_state_dict(model.state_dict() | values)
    return changed


@torch.no_grad()
def logits(model: LlamaForCausalLM) -> Tensor:
    """What the model says of TOKENS."""
    return model(TOKENS).logits.float()
