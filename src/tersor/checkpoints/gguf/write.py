"""Write networks of the Llama architecture as GGUF, the single file that llama.cpp runs."""

import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from tersor.checkpoints.gguf.blocks import KINDS, encode, encode_codes
from tersor.checkpoints.gguf.vocab import vocabulary
from tersor.errors import CheckpointError
from tersor.numerics import QTensor

_ALIGNMENT = 32
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor | QTensor]],
    tokenizer: str | Path | None,
    kind: Literal["q4_0", "q8_0", "q4_k", "f16"] = "q4_0",
    ragged: Literal["raise", "f16"] = "raise",
    keep: Collection[str] = (),
) -> dict[str, str]:
    """Write a network to one GGUF file (version 3), tensor by tensor.

    A QTensor keeps its codes and scales bit for bit, in Q4_0 or Q8_0, whatever ``kind`` is: with ``kind="f16"`` the
    file holds the quantized weights exactly, and all other matrices in FP16. A float matrix is rounded to ``kind``: to
    Q4_0 and Q8_0 as llama.cpp does but with the scale as stored, to Q4_K by least squares in each block. Vectors are
    FP32.

    Args:
        path: the file; it appears only when it is complete.
        config: the content of the model's config.json.
        tensors: the parameters by their names in transformers, each once, in any order.
        tokenizer: the folder of tokenizer.json, a BPE with byte fallback; None writes no vocabulary.
        kind: the block type that float matrices are rounded to.
        ragged: whether to raise, or store FP16, for a matrix whose row length is not a multiple of the block (32, or
            256 for Q4_K).
        keep: names of matrices that stay FP16.

    Returns:
        The block type of each tensor.

    Raises:
        CheckpointError: GGUF cannot store the architecture or a tensor (its width, format or groups), a tensor is
            missing or duplicated, or the disk is full; the message names it.

    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    path, folder = Path(path), None if tokenizer is None else Path(tokenizer)
    if kind not in KINDS or kind == "f32":
        raise CheckpointError(f"unknown kind {kind!r}: choose q4_0, q8_0, q4_k or f16")
    model = _Llama.of(config)
    metadata = model.metadata() | vocabulary(folder, config["vocab_size"])
    data, whole = (path.with_name(f"{path.name}.{part}") for part in ("data", "part"))
    infos: list[_Info] = []
    try:
        with data.open("wb") as out:
            for name, tensor in tensors:
                if not model.skips(name):
                    infos.append(_append(out, model, name, tensor, kind, ragged, keep))
                # Free it before the next one is loaded.
                del tensor
        model.check_complete([info.source for info in infos])
        matrices = Counter(info.kind for info in infos if len(info.shape) == 2)
        metadata["general.file_type"] = KINDS[matrices.most_common(1)[0][0]].file_type
        with whole.open("wb") as out, data.open("rb") as body:
            out.write(_header(metadata, infos))
            shutil.copyfileobj(body, out, 2**24)
        os.replace(whole, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    finally:
        data.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    return {info.source: info.kind for info in infos}


@dataclass(frozen=True)
class _Info:
    """A tensor's entry in the header."""

    source: str
    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int


@dataclass(frozen=True)
class _Llama:
    """Names, shapes and row order of the Llama architecture."""

    config: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "_Llama":
        """Raise CheckpointError for a configuration that llama.cpp would compute differently."""
        if config.get("model_type") != "llama":
            raise CheckpointError(f"model_type {config.get('model_type')!r} cannot be written to GGUF, only llama can")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CheckpointError(
                f"rope_type {rope.get('rope_type', rope.get('type'))!r} cannot be written to GGUF, only default can: "
                "convert the folder with llama.cpp"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointError(
                f"hidden_act {config['hidden_act']!r} cannot be written to GGUF, whose llama uses silu"
            )
        return cls(config)

    def metadata(self) -> dict[str, Any]:
        """The keys that describe the network."""
        config = self.config
        heads, width = config["num_attention_heads"], config["hidden_size"]
        head = config.get("head_dim") or width // heads
        theta = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)
        return {
            "general.architecture": "llama",
            "general.name": str(config.get("_name_or_path") or "llama"),
            "general.quantization_version": 2,
            "llama.vocab_size": config["vocab_size"],
            "llama.context_length": config["max_position_embeddings"],
            "llama.embedding_length": width,
            "llama.block_count": config["num_hidden_layers"],
            "llama.feed_forward_length": config["intermediate_size"],
            "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": config.get("num_key_value_heads") or heads,
            "llama.attention.key_length": head,
            "llama.attention.value_length": head,
            "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "llama.rope.dimension_count": head,
            "llama.rope.freq_base": float(theta),
        }

    def skips(self, name: str) -> bool:
        """Whether the file omits the tensor: llama.cpp computes it, or takes it from the embedding."""
        tied = name == "lm_head.weight" and self.config.get("tie_word_embeddings", False)
        return tied or name.endswith("rotary_emb.inv_freq")

    def gguf_name(self, name: str) -> str:
        """The tensor's name in GGUF."""
        if name in _WHOLE:
            return _WHOLE[name]
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None or match[2] not in _IN_BLOCK or int(match[1]) >= self.config["num_hidden_layers"]:
            raise CheckpointError(
                f"{name} is not a tensor of the Llama that config.json describes: does it belong to another model?"
            )
        return f"blk.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"

    def row_order(self, name: str, rows: int) -> Tensor | None:
        """The row permutation: RoPE pairs are half a head apart in transformers and adjacent in GGUF."""
        match = re.search(r"self_attn\.([qk])_proj\.", name)
        if match is None:
            return None
        heads = self.config["num_attention_heads"]
        if match[1] == "k":
            heads = self.config.get("num_key_value_heads") or heads
        return torch.arange(rows).unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten()

    def check_complete(self, names: list[str]) -> None:
        """Raise CheckpointError for a missing or duplicate tensor."""
        expected = {"model.embed_tokens.weight", "model.norm.weight"}
        expected |= set() if self.skips("lm_head.weight") else {"lm_head.weight"}
        for k in range(self.config["num_hidden_layers"]):
            expected |= {f"model.layers.{k}.{layer}.weight" for layer in _IN_BLOCK}
        if missing := sorted(expected - set(names)):
            raise CheckpointError(f"{len(missing)} tensors are missing, the first is {missing[0]}: is a shard absent?")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CheckpointError(f"{twice[0]} was given twice: pass each tensor once")


def _append(
    out: BinaryIO,
    model: _Llama,
    name: str,
    tensor: Tensor | QTensor,
    kind: str,
    ragged: str,
    keep: Collection[str],
) -> _Info:
    """Append one tensor to the data."""
    gguf_name, order = model.gguf_name(name), model.row_order(name, tensor.shape[0])
    if isinstance(tensor, QTensor):
        if order is not None:
            parts = {part: getattr(tensor, part)[order] for part in ("codes", "scale", "zero_point")}
            tensor = replace(tensor, **parts)
        kind, content = encode_codes(name, tensor)
    else:
        tensor = tensor.detach() if order is None else tensor.detach()[order]
        kind = _kind_of(name, tensor, kind, ragged, keep)
        content = encode(name, tensor.reshape(-1, tensor.shape[-1]), kind)
    info = _Info(name, gguf_name, tuple(tensor.shape), kind, out.tell())
    out.write(content.numpy().data)
    out.write(bytes(-out.tell() % _ALIGNMENT))
    return info


def _kind_of(name: str, tensor: Tensor, kind: str, ragged: str, keep: Collection[str]) -> str:
    if tensor.ndim == 1:
        return "f32"
    size = KINDS[kind].size
    if name in keep:
        return "f16"
    if tensor.shape[-1] % size == 0:
        return kind
    if ragged == "f16":
        return "f16"
    raise CheckpointError(
        f"{name} has {tensor.shape[-1]} inputs, not a multiple of {size}, the block size of {kind}: "
        "store it in FP16 (--ragged-f16, ragged='f16'), or choose another kind"
    )


def _header(metadata: Mapping[str, Any], infos: list[_Info]) -> bytes:
    """Everything before the data, padded to the alignment."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(infos), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), *_value(value)]
    for info in infos:
        dims = info.shape[::-1]
        parts += [_string(info.name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        parts += [struct.pack("<IQ", KINDS[info.kind].code, info.offset)]
    header = b"".join(parts)
    return header + bytes(-len(header) % _ALIGNMENT)


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value(value: Any) -> list[bytes]:
    """A value, preceded by its type code."""
    code, content = _typed(value)
    if code != 9:
        return [struct.pack("<I", code), content]
    # The only integers in lists are token types, which are signed.
    kinds = {str: 8, float: 6, int: 5}
    return [struct.pack("<IIQ", 9, kinds[type(value[0])], len(value)), *(_typed(one)[1] for one in value)]


def _typed(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    return (8, _string(value)) if isinstance(value, str) else (9, b"")
