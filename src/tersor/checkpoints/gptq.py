"""The GPTQ layout of AutoGPTQ and GPTQModel, versions 1 and 2."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tersor.checkpoints.bit_packing import (
    build_qtensor,
    check_weight,
    config_value,
    from_words,
    group_size,
    layer_name,
    packed_weights,
    stored_scale,
    stored_tensor,
    to_signed,
    to_unsigned,
    to_words,
)
from tersor.checkpoints.foreign.pattern import matches
from tersor.checkpoints.foreign.quantization import checked_config
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.spec import ScaleDtype


@dataclass(frozen=True)
class Gptq:
    """``qweight`` int32 [in·b/32, out], ``qzeros`` int32 [groups, out·b/32], ``scales`` FP16 [groups, out] and
    ``g_idx`` int32 [in], with unsigned codes: ``x = (q − z)·s``.

    Version 1 stores z − 1, version 2 stores z. Version 1 is written for symmetric weights only: a group without a
    negative weight has z = 0, and −1 would overflow into the next code. Inputs and outputs must fill whole words.
    Layers that stay in float or whose spec is not the most frequent one are listed under ``dynamic`` of the
    configuration, as read by GPTQModel and vLLM. Both versions are read, asymmetric weights included, but not a
    ``g_idx`` that permutes the groups (act-order without static groups).

    Frantar et al., arXiv 2210.17323; https://github.com/ModelCloud/GPTQModel.

    >>> Gptq().check("lm_head.weight", (512, 172), QuantSpec("int4", "channel"))
    Traceback (most recent call last):
    tersor.errors.CheckpointError: lm_head.weight has 172 inputs, which do not fill whole 32-bit words at 4 bits: ...
    """

    version: Literal[1, 2] = 1

    @property
    def name(self) -> str:
        """The key in LAYOUTS and the ``checkpoint_format`` in the configuration."""
        return "gptq" if self.version == 1 else "gptq_v2"

    fused_experts_alike: ClassVar[bool] = False

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        """Raise CheckpointError if the layout cannot store the weight."""
        check_weight(name, shape, spec, self.name, (2, 3, 4, 8))
        bits = spec.format.bits
        for what, count in (("inputs", shape[1]), ("outputs", shape[0])):
            if count * bits % 32:
                raise CheckpointError(
                    f"{name} has {count} {what}, which do not fill whole 32-bit words at {bits} bits: "
                    "write compressed-tensors, or keep this layer in float with a rule"
                )
        if self.version == 1 and not spec.symmetric:
            raise CheckpointError(
                f"{name} is asymmetric, and gptq stores the zero point minus 1, which cannot represent 0: "
                "write gptq_v2 or compressed-tensors, or use symmetric=True"
            )

    def scale_dtype(self, model_dtype: torch.dtype) -> ScaleDtype:
        """Always FP16."""
        return "float16"

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """``qweight``, ``qzeros``, ``scales`` and ``g_idx``."""
        self.check(name, qtensor.shape, qtensor.spec)
        bits, (_, inputs) = qtensor.spec.format.bits, qtensor.shape
        scale = stored_scale(name, qtensor, torch.float16)
        zeros = to_unsigned(qtensor.zero_point.expand_as(scale), bits) - int(self.version == 1)
        tensors = {
            "qweight": to_words(to_unsigned(qtensor.codes, bits), bits).t(),
            "qzeros": to_words(zeros.t(), bits),
            "scales": scale.t(),
            "g_idx": _sequential_g_idx(inputs, scale.shape[1]),
        }
        return {f"{layer_name(name)}.{suffix}": t.contiguous() for suffix, t in tensors.items()}

    def config(self, specs: Mapping[str, QuantSpec], unquantized: Sequence[str]) -> dict[str, Any]:
        """The configuration; ``dynamic`` lists layers that stay in float or differ from the most frequent spec."""
        kinds = {layer_name(name): _kind(spec) for name, spec in specs.items()}
        if not kinds:
            raise CheckpointError(f"no weight is quantized: there is nothing to write as {self.name}")
        usual, _ = Counter(tuple(kind.items()) for kind in kinds.values()).most_common(1)[0]
        # Readers keep the head in float unless `lm_head` is true.
        dynamic = {f"-:^{re.escape(layer)}$": {} for layer in unquantized if layer != "lm_head"}
        dynamic |= {f"+:^{re.escape(k)}$": kind for k, kind in kinds.items() if tuple(kind.items()) != usual}
        return {
            "quant_method": "gptq",
            "checkpoint_format": self.name,
            **dict(usual),
            "desc_act": False,
            "lm_head": "lm_head" in kinds,
            "pack_dtype": "int32",
        } | ({"dynamic": dynamic} if dynamic else {})

    def decode(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> QTensor:
        """The weight; symmetric if every zero point is the midpoint."""
        kind = checked_config({**config, **_dynamic(layer_name(name), config)})
        bits, size = config_value(kind, "bits"), config_value(kind, "group_size")
        qweight, qzeros, scales = (stored_tensor(name, suffix, tensors) for suffix in ("qweight", "qzeros", "scales"))
        codes = to_signed(from_words(name, qweight.t().contiguous(), bits, len(qweight) * 32 // bits), bits)
        # Version 1 stores z = 0 with all bits set.
        stored = from_words(name, qzeros, bits, qzeros.shape[1] * 32 // bits).int() + int(self.version == 1)
        zeros = to_signed(stored % 2**bits, bits).t()
        symmetric = kind.get("sym", True) and not zeros.any()
        qtensor = build_qtensor(name, codes, scales.t(), zeros, size, symmetric, bits)
        order = tensors.get(f"{layer_name(name)}.g_idx")
        if order is not None and not torch.equal(order.int(), _sequential_g_idx(codes.shape[1], len(scales))):
            raise CheckpointError(
                f"{name}: its g_idx permutes the groups (act-order), which is not supported: "
                "quantize with static groups, or with desc_act=False"
            )
        return qtensor

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        """The weights that have a ``qweight``."""
        return packed_weights(names)

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether it names this version; files older than version 2 do not name one."""
        return config.get("quant_method") == "gptq" and config.get("checkpoint_format", "gptq") == self.name

    def reader_limits(self, specs: Iterable[QuantSpec]) -> list[str]:
        """No limits are known."""
        return []


def _sequential_g_idx(inputs: int, groups: int) -> Tensor:
    """The group of each input: 0 0 … 1 1 …"""
    return torch.arange(inputs, dtype=torch.int32) // (inputs // groups)


def _kind(spec: QuantSpec) -> dict[str, Any]:
    return {"bits": spec.format.bits, "group_size": group_size(spec), "sym": spec.symmetric}


def _dynamic(layer: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``dynamic`` overrides of a layer: the first pattern that matches the start of its name."""
    for pattern, kind in (config.get("dynamic") or {}).items():
        if not pattern.startswith("-:") and isinstance(kind, dict) and matches(pattern.removeprefix("+:"), layer):
            return kind
    return {}
