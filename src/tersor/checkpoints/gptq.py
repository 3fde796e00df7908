"""GPTQ's layout, of AutoGPTQ and GPTQModel, in both of its versions."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tersor.checkpoints.bit_packing import (
    assembled,
    check_weight,
    field,
    from_words,
    group_size,
    lowered,
    module,
    packed_weights,
    part,
    raised,
    stored_scale,
    to_words,
)
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.spec import ScaleDtype


@dataclass(frozen=True)
class Gptq:
    """``qweight`` int32 [in·b/32, out], ``qzeros`` int32 [groups, out·b/32], ``scales`` FP16 [groups, out] and
    ``g_idx`` int32 [in], with unsigned codes: ``x = (q − z)·s``.

    Version 1 stores z − 1, version 2 stores z. Only symmetric weights are written in version 1: a group
    without a negative weight has z = 0, and −1 would run into its neighbour's bits. Inputs and outputs must
    fill whole words. Layers whose spec is not that of most stand under ``dynamic`` of the configuration, and so do
    those that stay in float, as GPTQModel and vLLM read it. Read are both versions, also asymmetric, but no
    ``g_idx`` in which the groups are mixed (act-order without static groups).

    Frantar et al., arXiv 2210.17323; https://github.com/ModelCloud/GPTQModel.

    >>> Gptq().check("lm_head.weight", (512, 172), QuantSpec("int4", "channel"))
    Traceback (most recent call last):
    tersor.errors.CheckpointError: lm_head.weight has 172 inputs, which fill no whole words of 32 bits at 4 bits: ...
    """

    version: Literal[1, 2] = 1

    @property
    def name(self) -> str:
        """As in LAYOUTS, and as ``checkpoint_format`` in the configuration."""
        return "gptq" if self.version == 1 else "gptq_v2"

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        """Raise CheckpointError if the layout cannot hold the weight."""
        check_weight(name, shape, spec, self.name, (2, 3, 4, 8))
        bits = spec.format.bits
        for what, count in (("inputs", shape[1]), ("outputs", shape[0])):
            if count * bits % 32:
                raise CheckpointError(
                    f"{name} has {count} {what}, which fill no whole words of 32 bits at {bits} bits: "
                    "write compressed-tensors, or leave this layer in float by a rule"
                )
        if self.version == 1 and not spec.symmetric:
            raise CheckpointError(
                f"{name} is asymmetric, and gptq stores the zero point less 1, which one of 0 does not survive: "
                "write gptq_v2 or compressed-tensors, or take symmetric=True"
            )

    def scale_dtype(self, model_dtype: torch.dtype) -> ScaleDtype:
        """FP16 always."""
        return "float16"

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """``qweight``, ``qzeros``, ``scales`` and ``g_idx``."""
        self.check(name, qtensor.shape, qtensor.spec)
        bits, (_, inputs) = qtensor.spec.format.bits, qtensor.shape
        scale = stored_scale(name, qtensor, torch.float16)
        zeros = raised(qtensor.zero_point.expand_as(scale), bits) - int(self.version == 1)
        tensors = {
            "qweight": to_words(raised(qtensor.codes, bits), bits).t(),
            "qzeros": to_words(zeros.t(), bits),
            "scales": scale.t(),
            "g_idx": _plain_order(inputs, scale.shape[1]),
        }
        return {f"{module(name)}.{suffix}": t.contiguous() for suffix, t in tensors.items()}

    def config(self, specs: Mapping[str, QuantSpec], left: Sequence[str]) -> dict[str, Any]:
        """The configuration; what differs from the most frequent spec, or stays in float, is ``dynamic``."""
        kinds = {module(name): _kind(spec) for name, spec in specs.items()}
        if not kinds:
            raise CheckpointError(f"no weight is quantized, so there is nothing to write as {self.name}")
        usual, _ = Counter(tuple(kind.items()) for kind in kinds.values()).most_common(1)[0]
        # The head stays in float unless `lm_head` says otherwise.
        dynamic = {f"-:^{re.escape(layer)}$": {} for layer in left if layer != "lm_head"}
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
        """The weight; symmetric if every zero point is in the middle."""
        kind = {**config, **_dynamic(module(name), config)}
        bits, size = field(kind, "bits"), field(kind, "group_size")
        qweight, qzeros, scales = (part(name, suffix, tensors) for suffix in ("qweight", "qzeros", "scales"))
        codes = lowered(from_words(name, qweight.t().contiguous(), bits, len(qweight) * 32 // bits), bits)
        # In version 1 a z of 0 is stored with all bits set.
        stored = from_words(name, qzeros, bits, qzeros.shape[1] * 32 // bits).int() + int(self.version == 1)
        zeros = lowered(stored % 2**bits, bits).t()
        symmetric = kind.get("sym", True) and not zeros.any()
        qtensor = assembled(name, codes, scales.t(), zeros, size, symmetric, bits)
        order = tensors.get(f"{module(name)}.g_idx")
        if order is not None and not torch.equal(order.int(), _plain_order(codes.shape[1], len(scales))):
            raise CheckpointError(
                f"{name}: its g_idx mixes the groups (act-order), which is not read here: "
                "quantize with static groups, or with desc_act=False"
            )
        return qtensor

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        """The weights of which there is a ``qweight``."""
        return packed_weights(names)


def _plain_order(inputs: int, groups: int) -> Tensor:
    """The group of each input: 0 0 … 1 1 …"""
    return torch.arange(inputs, dtype=torch.int32) // (inputs // groups)


def _kind(spec: QuantSpec) -> dict[str, Any]:
    return {"bits": spec.format.bits, "group_size": group_size(spec), "sym": spec.symmetric}


def _dynamic(layer: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``dynamic`` says of a layer: the first pattern that matches its beginning counts."""
    for pattern, kind in (config.get("dynamic") or {}).items():
        if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), layer):
            return kind
    return {}
