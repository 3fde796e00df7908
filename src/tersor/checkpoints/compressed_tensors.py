"""The layout of compressed-tensors, which vLLM and transformers read."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.checkpoints.bit_packing import (
    assembled,
    check_weight,
    field,
    from_words,
    lowered,
    module,
    part,
    raised,
    stored_scale,
    to_words,
)
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.spec import ScaleDtype

# The version of compressed-tensors whose files these are.
_VERSION = "0.20.0"


@dataclass(frozen=True)
class CompressedTensors:
    """``weight_packed`` int32 [out, ⌈in·b/32⌉], ``weight_scale`` [out, groups] in the model's dtype,
    ``weight_shape`` int64 [2] and, if asymmetric, ``weight_zero_point`` int32 [⌈out·b/32⌉, groups]:
    ``pack-quantized``, for 2, 3, 4 and 8 bits and rows of any length.

    Codes and zero points are counted from the lowest. Layers of several specs stand in ``config_groups`` of their
    own, by name. Read is ``int-quantized`` too (``weight`` int8), but no activations that are to be quantized.
    transformers 5.23 opens asymmetric weights with ``CompressedTensorsConfig(dequantize=True)`` alone, and then only
    where one spec is for all; symmetric ones it opens in any mixture.

    https://github.com/vllm-project/compressed-tensors.

    >>> CompressedTensors().check("lm_head.weight", (512, 172), QuantSpec("int4", "group:32"))
    Traceback (most recent call last):
    tersor.errors.CheckpointError: lm_head.weight has 172 inputs, which groups of 32 do not divide: ...
    """

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        """Raise CheckpointError if the layout cannot hold the weight."""
        check_weight(name, shape, spec, "compressed-tensors", (2, 3, 4, 8))

    def scale_dtype(self, model_dtype: torch.dtype) -> ScaleDtype:
        """The model's own."""
        known: dict[torch.dtype, ScaleDtype] = {
            torch.float32: "float32",
            torch.float16: "float16",
            torch.bfloat16: "bfloat16",
        }
        if model_dtype not in known:
            raise CheckpointError(f"a model in {model_dtype} has no scales: convert it to one of {list(known)}")
        return known[model_dtype]

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """``weight_packed``, ``weight_scale``, ``weight_shape``, and ``weight_zero_point`` if asymmetric."""
        self.check(name, qtensor.shape, qtensor.spec)
        bits = qtensor.spec.format.bits
        tensors = {
            "weight_packed": to_words(raised(qtensor.codes, bits), bits),
            "weight_scale": stored_scale(name, qtensor, dtype).contiguous(),
            "weight_shape": torch.tensor(qtensor.shape),
        }
        if not qtensor.spec.symmetric:
            zeros = raised(qtensor.zero_point.expand_as(qtensor.scale), bits)
            tensors["weight_zero_point"] = to_words(zeros.t(), bits).t().contiguous()
        return {f"{module(name)}.{suffix}": t for suffix, t in tensors.items()}

    def config(self, specs: Mapping[str, QuantSpec], left: Sequence[str]) -> dict[str, Any]:
        """The configuration; a single group is for all linear layers but ``left``, several name theirs."""
        groups: dict[QuantSpec, list[str]] = {}
        for name, spec in specs.items():
            groups.setdefault(spec.with_(scale_dtype="float32", rounding="nearest"), []).append(module(name))
        if not groups:
            raise CheckpointError("no weight is quantized, so there is nothing to write as compressed-tensors")
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{k}": {
                    "targets": ["Linear"] if len(groups) == 1 else layers,
                    "weights": _arguments(spec),
                    "input_activations": None,
                    "output_activations": None,
                }
                for k, (spec, layers) in enumerate(groups.items())
            },
            "ignore": list(left),
            "kv_cache_scheme": None,
            "version": _VERSION,
        }

    def decode(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> QTensor:
        """The weight, with the arguments of the group whose targets it is in."""
        weights = _group_of(module(name), config)["weights"]
        bits, kind, strategy = weights["num_bits"], weights.get("type", "int"), weights.get("strategy")
        if kind != "int" or strategy not in ("group", "channel"):
            raise CheckpointError(
                f"{name}: weights of type {kind} scaled per {strategy} are not read here: "
                "integers per channel or group are"
            )
        if f"{module(name)}.weight_g_idx" in tensors:
            raise CheckpointError(
                f"{name}: its weight_g_idx mixes the groups (actorder: group), which is not read here: "
                "quantize with actorder: static"
            )
        scale, packed = part(name, "weight_scale", tensors), name not in tensors
        codes = _unpacked(name, tensors, bits) if packed else tensors[name]
        symmetric = weights.get("symmetric", True)
        zeros = torch.zeros_like(scale) if symmetric else part(name, "weight_zero_point", tensors)
        if packed and not symmetric:
            zeros = lowered(from_words(name, zeros.t().contiguous(), bits, len(codes)), bits).t()
        size = weights["group_size"] if strategy == "group" else -1
        return assembled(name, codes, scale, zeros, size, symmetric, bits)

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        """The weights of which there is a ``weight_scale``; raises CheckpointError if activations are quantized."""
        for key, group in field(config, "config_groups").items():
            if group.get("input_activations") or group.get("output_activations"):
                raise CheckpointError(
                    f"{key} of the quantization_config quantizes activations, which is not read here: weights are"
                )
        return {n.removesuffix("_scale") for n in names if n.endswith(".weight_scale")}


def _unpacked(name: str, tensors: Mapping[str, Tensor], bits: int) -> Tensor:
    words = part(name, "weight_packed", tensors)
    _, inputs = part(name, "weight_shape", tensors).tolist()
    return lowered(from_words(name, words, bits, inputs), bits)


def _arguments(spec: QuantSpec) -> dict[str, Any]:
    size = spec.granularity.size
    return {
        "num_bits": spec.format.bits,
        "type": "int",
        "symmetric": spec.symmetric,
        "strategy": "group" if size else "channel",
        "group_size": size or None,
        "dynamic": False,
        "actorder": None,
    }


def _group_of(layer: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The group that names the layer, by its name or a pattern before its class."""
    groups: list[dict[str, Any]] = list(field(config, "config_groups").values())
    for group in groups:
        for target in group["targets"]:
            if target == layer or (target.startswith("re:") and re.match(target[3:], layer)):
                return group
    for group in groups:
        if "Linear" in group["targets"]:
            return group
    raise CheckpointError(f"no config_group of the quantization_config has the layer {layer} among its targets")
