"""AutoAWQ's GEMM layout."""

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
    group_size,
    layer_name,
    packed_weights,
    stored_scale,
    stored_tensor,
    to_signed,
    to_unsigned,
    to_words,
)
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.spec import ScaleDtype

_BITS = 4
# Nibble i of a word (lowest first) holds this one of the word's eight columns.
_ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])


@dataclass(frozen=True)
class Awq:
    """``qweight`` int32 [in, out/8], ``qzeros`` int32 [groups, out/8] and ``scales`` FP16 [groups, out], with
    unsigned codes of 4 bits: ``x = (q − z)·s``. The columns within a word are permuted.

    Zero points are always stored, so symmetric and asymmetric layers can be mixed; group sizes cannot.

    Lin et al., arXiv 2306.00978; https://github.com/casper-hansen/AutoAWQ.

    >>> Awq().check("lm_head.weight", (512, 64), QuantSpec("int3", "channel"))
    Traceback (most recent call last):
    tersor.errors.CheckpointError: lm_head.weight: awq stores int4, not int3: ...
    """

    fused_experts_alike: ClassVar[bool] = False

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        """Raise CheckpointError if the layout cannot store the weight."""
        check_weight(name, shape, spec, "awq", (_BITS,))
        if shape[0] % 8:
            raise CheckpointError(
                f"{name} has {shape[0]} outputs, not a multiple of the 8 codes in a word: "
                "write compressed-tensors, or keep this layer in float with a rule"
            )

    def scale_dtype(self, model_dtype: torch.dtype) -> ScaleDtype:
        """Always FP16."""
        return "float16"

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """``qweight``, ``qzeros`` and ``scales``."""
        self.check(name, qtensor.shape, qtensor.spec)
        scale = stored_scale(name, qtensor, torch.float16)
        zeros = to_unsigned(qtensor.zero_point.expand_as(scale), _BITS)
        tensors = {
            "qweight": _pack_columns(to_unsigned(qtensor.codes, _BITS).t()),
            "qzeros": _pack_columns(zeros.t()),
            "scales": scale.t().contiguous(),
        }
        return {f"{layer_name(name)}.{suffix}": t for suffix, t in tensors.items()}

    def config(self, specs: Mapping[str, QuantSpec], unquantized: Sequence[str]) -> dict[str, Any]:
        """The configuration; all layers share one group size."""
        sizes = {group_size(spec): name for name, spec in specs.items()}
        if len(sizes) != 1:
            listed = ", ".join(f"{size} ({name})" for size, name in sizes.items()) or "none"
            raise CheckpointError(
                f"awq requires one group size for all layers, and these have {listed}: "
                "use one granularity, or write compressed-tensors"
            )
        return {
            "quant_method": "awq",
            "bits": _BITS,
            "group_size": next(iter(sizes)),
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(unquantized) or None,
        }

    def decode(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> QTensor:
        """The weight; symmetric if every zero point is the midpoint."""
        bits, version = config_value(config, "bits"), str(config.get("version", "gemm")).lower()
        if bits != _BITS or version != "gemm":
            raise CheckpointError(
                f"{name}: awq with {bits} bits, version {version}, is not supported; only 4 bits, version gemm, is"
            )
        qweight, qzeros, scales = (stored_tensor(name, suffix, tensors) for suffix in ("qweight", "qzeros", "scales"))
        codes, zeros = (to_signed(_unpack_columns(name, t), _BITS).t() for t in (qweight, qzeros))
        size, symmetric = config_value(config, "group_size"), not zeros.any()
        return build_qtensor(name, codes, scales.t(), zeros, size, bool(symmetric), _BITS)

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        """The weights that have a ``qweight``."""
        return packed_weights(names)

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether the ``quant_method`` is awq; ``decode`` rejects versions other than GEMM."""
        return config.get("quant_method") == "awq"

    def reader_limits(self, specs: Iterable[QuantSpec]) -> list[str]:
        """No limits are known."""
        return []


def _pack_columns(codes: Tensor) -> Tensor:
    """Pack codes [n, out] into words [n, out/8]."""
    return to_words(codes.unflatten(1, (-1, 8))[:, :, _ORDER].flatten(1), _BITS)


def _unpack_columns(name: str, words: Tensor) -> Tensor:
    """Unpack words [n, out/8] into codes [n, out]."""
    codes = from_words(name, words, _BITS, words.shape[1] * 8).unflatten(1, (-1, 8))
    return codes[:, :, _ORDER.argsort()].flatten(1)
