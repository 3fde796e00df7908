"""The compressed-tensors layout, which vLLM and transformers read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tersor.checkpoints.bit_packing import (
    build_qtensor,
    check_weight,
    config_value,
    from_words,
    layer_name,
    stored_scale,
    stored_tensor,
    to_signed,
    to_unsigned,
    to_words,
)
from tersor.checkpoints.foreign.pattern import matches
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.spec import ScaleDtype

# The version of compressed-tensors that the files follow.
_VERSION = "0.20.0"


@dataclass(frozen=True)
class CompressedTensors:
    """``weight_packed`` int32 [out, ⌈in·b/32⌉], ``weight_scale`` [out, groups] in the model's dtype,
    ``weight_shape`` int64 [2] and, if asymmetric, ``weight_zero_point`` int32 [⌈out·b/32⌉, groups]:
    ``pack-quantized``, for 2, 3, 4 and 8 bits and rows of any length.

    Codes and zero points are stored unsigned. When specs differ, each has its own entry in ``config_groups`` that
    names its layers. ``int-quantized`` (``weight`` int8) is read too, quantized activations are not.
    transformers 5.23 opens asymmetric weights only with ``CompressedTensorsConfig(dequantize=True)``, and only if all
    layers share one spec; symmetric weights open in any mixture.

    https://github.com/vllm-project/compressed-tensors.

    >>> CompressedTensors().check("lm_head.weight", (512, 172), QuantSpec("int4", "group:32"))
    Traceback (most recent call last):
    tersor.errors.CheckpointError: lm_head.weight has 172 inputs, not a multiple of the group size 32: ...
    """

    fused_experts_alike: ClassVar[bool] = True

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        """Raise CheckpointError if the layout cannot store the weight."""
        check_weight(name, shape, spec, "compressed-tensors", (2, 3, 4, 8))

    def scale_dtype(self, model_dtype: torch.dtype) -> ScaleDtype:
        """The model's dtype."""
        known: dict[torch.dtype, ScaleDtype] = {
            torch.float32: "float32",
            torch.float16: "float16",
            torch.bfloat16: "bfloat16",
        }
        if model_dtype not in known:
            raise CheckpointError(
                f"compressed-tensors has no scales in {model_dtype}: convert the model to one of {list(known)}"
            )
        return known[model_dtype]

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """``weight_packed``, ``weight_scale``, ``weight_shape``, and ``weight_zero_point`` if asymmetric."""
        self.check(name, qtensor.shape, qtensor.spec)
        bits = qtensor.spec.format.bits
        tensors = {
            "weight_packed": to_words(to_unsigned(qtensor.codes, bits), bits),
            "weight_scale": stored_scale(name, qtensor, dtype).contiguous(),
            "weight_shape": torch.tensor(qtensor.shape),
        }
        if not qtensor.spec.symmetric:
            zeros = to_unsigned(qtensor.zero_point.expand_as(qtensor.scale), bits)
            tensors["weight_zero_point"] = to_words(zeros.t(), bits).t().contiguous()
        return {f"{layer_name(name)}.{suffix}": t for suffix, t in tensors.items()}

    def config(self, specs: Mapping[str, QuantSpec], unquantized: Sequence[str]) -> dict[str, Any]:
        """The configuration; one group targets all linear layers but ``unquantized``; several name their layers."""
        groups: dict[QuantSpec, list[str]] = {}
        for name, spec in specs.items():
            groups.setdefault(spec.with_(scale_dtype="float32", rounding="nearest"), []).append(layer_name(name))
        if not groups:
            raise CheckpointError("no weight is quantized: there is nothing to write as compressed-tensors")
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
            "ignore": list(unquantized),
            "kv_cache_scheme": None,
            "version": _VERSION,
        }

    def decode(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> QTensor:
        """The weight, decoded with the arguments of the group that targets it."""
        weights = _group_of(layer_name(name), config).get("weights")
        if not weights:
            raise CheckpointError(f"{name}: its group in config_groups has no `weights`: download the folder again")
        bits, kind, strategy = weights["num_bits"], weights.get("type", "int"), weights.get("strategy")
        if kind != "int" or strategy not in ("group", "channel"):
            raise CheckpointError(
                f"{name}: weights of type {kind} scaled per {strategy} are not supported; "
                "integers per channel or group are"
            )
        if f"{layer_name(name)}.weight_g_idx" in tensors:
            raise CheckpointError(
                f"{name}: its weight_g_idx permutes the groups (actorder: group), which is not supported: "
                "quantize with actorder: static"
            )
        scale, packed = stored_tensor(name, "weight_scale", tensors), name not in tensors
        codes = _unpack(name, tensors, bits) if packed else tensors[name]
        symmetric = weights.get("symmetric", True)
        zeros = torch.zeros_like(scale) if symmetric else stored_tensor(name, "weight_zero_point", tensors)
        if packed and not symmetric:
            zeros = to_signed(from_words(name, zeros.t().contiguous(), bits, len(codes)), bits).t()
        size = (weights.get("group_size") or -1) if strategy == "group" else -1
        return build_qtensor(name, codes, scale, zeros, size, symmetric, bits)

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        """The weights that have a ``weight_scale``; raises CheckpointError if activations are quantized."""
        for key, group in config_value(config, "config_groups").items():
            if group.get("input_activations") or group.get("output_activations"):
                raise CheckpointError(
                    f"{key} of the quantization_config quantizes activations; only quantized weights are supported"
                )
        return {n.removesuffix("_scale") for n in names if n.endswith(".weight_scale")}

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether the ``quant_method`` is compressed-tensors."""
        return config.get("quant_method") == "compressed-tensors"

    def reader_limits(self, specs: Iterable[QuantSpec]) -> list[str]:
        """Those of transformers with asymmetric weights."""
        if all(spec.symmetric for spec in specs):
            return []
        return [
            "transformers opens asymmetric weights of this layout with CompressedTensorsConfig(dequantize=True) alone, "
            "and only where all have one spec; symmetric ones it opens as they are"
        ]


def _unpack(name: str, tensors: Mapping[str, Tensor], bits: int) -> Tensor:
    words = stored_tensor(name, "weight_packed", tensors)
    shape = stored_tensor(name, "weight_shape", tensors)
    if shape.shape != (2,) or words.ndim != 2:
        raise CheckpointError(f"{name}: its weight_shape holds no two sizes, or it is no matrix: the file is damaged")
    _, inputs = map(int, shape.tolist())
    return to_signed(from_words(name, words, bits, inputs), bits)


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
    """The group that targets the layer; a name or pattern takes precedence over the class."""
    groups: list[dict[str, Any]] = list(config_value(config, "config_groups").values())
    for group in groups:
        for target in group["targets"]:
            if target == layer or (target.startswith("re:") and matches(target[3:], layer)):
                return group
    for group in groups:
        if "Linear" in group["targets"]:
            return group
    raise CheckpointError(f"no group in config_groups of the quantization_config targets the layer {layer}")
