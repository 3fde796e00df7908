"""AWQ's layout, of AutoAWQ, in its version GEMM."""

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

_BITS = 4
# Nibble i of a word, from the lowest, holds this one of its eight columns.
_ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])


@dataclass(frozen=True)
class Awq:
    """``qweight`` int32 [in, out/8], ``qzeros`` int32 [groups, out/8] and ``scales`` FP16 [groups, out], with
    unsigned codes of 4 bits: ``x = (q − z)·s``. The columns of a word are shuffled.

    Zero points are always stored, so symmetric and asymmetric layers may stand side by side; groups of several sizes
    may not.

    Lin et al., arXiv 2306.00978; https://github.com/casper-hansen/AutoAWQ.

    >>> Awq().check("lm_head.weight", (512, 64), QuantSpec("int3", "channel"))
    Traceback (most recent call last):
    tersor.errors.CheckpointError: lm_head.weight is to be int3, awq holds int4: ...
    """

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        """Raise CheckpointError if the layout cannot hold the weight."""
        check_weight(name, shape, spec, "awq", (_BITS,))
        if shape[0] % 8:
            raise CheckpointError(
                f"{name} has {shape[0]} outputs, which fill no whole words of 8 codes: "
                "write compressed-tensors, or leave this layer in float by a rule"
            )

    def scale_dtype(self, model_dtype: torch.dtype) -> ScaleDtype:
        """FP16 always."""
        return "float16"

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """``qweight``, ``qzeros`` and ``scales``."""
        self.check(name, qtensor.shape, qtensor.spec)
        scale = stored_scale(name, qtensor, torch.float16)
        zeros = raised(qtensor.zero_point.expand_as(scale), _BITS)
        tensors = {
            "qweight": _shuffled(raised(qtensor.codes, _BITS).t()),
            "qzeros": _shuffled(zeros.t()),
            "scales": scale.t().contiguous(),
        }
        return {f"{module(name)}.{suffix}": t for suffix, t in tensors.items()}

    def config(self, specs: Mapping[str, QuantSpec], left: Sequence[str]) -> dict[str, Any]:
        """The configuration; there is one size of groups for all."""
        sizes = {group_size(spec): name for name, spec in specs.items()}
        if len(sizes) != 1:
            found = ", ".join(f"{size} ({name})" for size, name in sizes.items()) or "none"
            raise CheckpointError(
                f"awq has one size of groups for all layers, and these have {found}: "
                "give them one granularity, or write compressed-tensors"
            )
        return {
            "quant_method": "awq",
            "bits": _BITS,
            "group_size": next(iter(sizes)),
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(left) or None,
        }

    def decode(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> QTensor:
        """The weight; symmetric if every zero point is in the middle."""
        bits, version = field(config, "bits"), str(config.get("version", "gemm")).lower()
        if bits != _BITS or version != "gemm":
            raise CheckpointError(f"{name}: awq of {bits} bits in {version} is not read here, 4 bits in gemm are")
        qweight, qzeros, scales = (part(name, suffix, tensors) for suffix in ("qweight", "qzeros", "scales"))
        codes, zeros = (lowered(_unshuffled(name, t), _BITS).t() for t in (qweight, qzeros))
        size, symmetric = field(config, "group_size"), not zeros.any()
        return assembled(name, codes, scales.t(), zeros, size, bool(symmetric), _BITS)

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        """The weights of which there is a ``qweight``."""
        return packed_weights(names)


def _shuffled(codes: Tensor) -> Tensor:
    """Codes [n, out] as words [n, out/8]."""
    return to_words(codes.unflatten(1, (-1, 8))[:, :, _ORDER].flatten(1), _BITS)


def _unshuffled(name: str, words: Tensor) -> Tensor:
    """Words [n, out/8] as codes [n, out]."""
    codes = from_words(name, words, _BITS, words.shape[1] * 8).unflatten(1, (-1, 8))
    return codes[:, :, _ORDER.argsort()].flatten(1)
