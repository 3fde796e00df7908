"""Helpers shared by the layouts of quantized language models: codes packed into 32-bit words, row by row."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from tersor.errors import CheckpointError, NumericsError
from tersor.numerics import QTensor, QuantSpec, expand, pack, packed_bytes, unpack


def to_words(codes: Integer[Tensor, "rows n"], bits: int) -> Int[Tensor, "rows words"]:
    """Pack unsigned codes into int32 words: each row is one bit stream, lowest bit first, padded with zeros.

    >>> to_words(torch.tensor([[1, 2, 15, 0, 0, 0, 0, 0, 3]]), 4).tolist()
    [[3873, 3]]
    """
    rows, count = codes.shape
    # At any width, 32 codes fill a whole number of words.
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, -count % 32))
    return pack(padded, bits).view(torch.int32).reshape(rows, -1)[:, : word_count(count, bits)].contiguous()


def from_words(name: str, words: Int[Tensor, "rows words"], bits: int, count: int) -> UInt8[Tensor, "rows n"]:
    """Unpack the words that ``to_words`` wrote for the weight ``name``: ``count`` codes a row.

    Raises:
        CheckpointError: the rows have a different length.
    """
    if words.shape[1] != word_count(count, bits):
        raise CheckpointError(
            f"{name}: {words.shape[1]} words cannot hold {count} codes of {bits} bits: the file is damaged, "
            "or config.json belongs to a different model"
        )
    padded = -(-count // 32) * 32
    full = torch.nn.functional.pad(words, (0, word_count(padded, bits) - words.shape[1])).contiguous()
    codes = unpack(full.view(torch.uint8).reshape(-1), bits, len(full) * padded, signed=False)
    return codes.reshape(len(full), padded)[:, :count]


def word_count(count: int, bits: int) -> int:
    """The number of words that ``count`` codes take.

    >>> word_count(172, 4)
    22
    """
    return -(-packed_bytes(count, bits) // 4)


def to_unsigned(codes: Integer[Tensor, "..."] | Float[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Convert signed codes or zero points to unsigned by adding 2^(bits − 1).

    >>> to_unsigned(torch.tensor([-8, 0, 7]), 4).tolist()
    [0, 8, 15]
    """
    return codes.to(torch.int32) + 2 ** (bits - 1)


def to_signed(codes: Integer[Tensor, "..."], bits: int) -> Integer[Tensor, "..."]:
    """Invert ``to_unsigned``, as int8."""
    return (codes.to(torch.int32) - 2 ** (bits - 1)).to(torch.int8)


def layer_name(name: str) -> str:
    """The layer that the weight ``name`` belongs to; raises CheckpointError for any other parameter.

    >>> layer_name("model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj'
    """
    if not name.endswith(".weight"):
        raise CheckpointError(
            f"{name} is not a layer's weight, whose name ends in .weight: keep it in float with a rule"
        )
    return name.removesuffix(".weight")


def group_size(spec: QuantSpec, channel: int = -1) -> int:
    """The group size of ``spec`` as written in configurations; ``channel`` means one scale per row."""
    return spec.granularity.size or channel


def check_weight(name: str, shape: Sequence[int], spec: QuantSpec, layout: str, bits: Sequence[int]) -> None:
    """Check what every layout requires: a matrix of signed integers, scaled per channel or in whole groups.

    Raises:
        CheckpointError: naming the layer, the value and the remedy.
    """
    layer_name(name)
    remedy = "keep this layer in float with a rule"
    if len(shape) != 2:
        raise CheckpointError(f"{name} has shape {tuple(shape)}, {layout} stores matrices only: {remedy}")
    format = spec.format
    if format.kind != "int" or not format.signed or format.bits not in bits:
        known = ", ".join(f"int{b}" for b in bits)
        raise CheckpointError(f"{name}: {layout} stores {known}, not {format}: choose one of them, or {remedy}")
    kind, size = spec.granularity.kind, spec.granularity.size
    if kind not in ("channel", "group") or spec.granularity.axis:
        raise CheckpointError(
            f"{name} has scales per {spec.granularity}, {layout} stores scales per channel or group: choose one of them"
        )
    if size and shape[1] % size:
        raise CheckpointError(
            f"{name} has {shape[1]} inputs, not a multiple of the group size {size}: "
            f"choose channel or a group size that divides them, or {remedy}"
        )


def stored_scale(name: str, qtensor: QTensor, dtype: torch.dtype) -> Float[Tensor, "out groups"]:
    """The scale in ``dtype``; raises CheckpointError if the conversion would change it."""
    scale = qtensor.scale.to(dtype)
    if not torch.equal(scale.float(), qtensor.scale):
        wanted = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{name}: its scales are not representable in {wanted}, in which they are stored: "
            f"quantize it with scale_dtype={wanted!r}"
        )
    return scale


def stored_tensor(name: str, suffix: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor stored as ``suffix`` for the weight ``name``; raises CheckpointError if it is missing."""
    wanted = f"{layer_name(name)}.{suffix}"
    if wanted not in tensors:
        raise CheckpointError(f"{wanted}, part of the quantized {name}, is missing: download the folder again")
    return tensors[wanted]


def packed_weights(names: Iterable[str]) -> set[str]:
    """The weights that have a ``qweight`` in ``names``.

    >>> packed_weights(["head.qweight", "head.scales", "norm.weight"])
    {'head.weight'}
    """
    return {n.removesuffix("qweight") + "weight" for n in names if n.endswith(".qweight")}


def build_qtensor(
    name: str, codes: Tensor, scale: Tensor, zeros: Tensor, size: int, symmetric: bool, bits: int
) -> QTensor:
    """Build a weight from signed codes [out, in], and scales and zero points [out, groups], all as stored.

    Groups have ``size`` inputs; −1 means one group per row. A scale of 0, which some writers store for a group of zeros
    (or of values too small for FP16), becomes 1, and the group's codes its zero point: the same values.

    Raises:
        CheckpointError: the shapes do not match, or a scale is negative or not finite.
    """
    granularity = f"group:{size}" if size > 0 else "channel"
    stored = str(scale.dtype).removeprefix("torch.")
    spec = QuantSpec(f"int{bits}", granularity, symmetric=symmetric, scale_dtype=stored)
    expected = spec.granularity.scale_shape(codes.shape)
    if scale.shape != expected or zeros.shape != expected:
        raise CheckpointError(
            f"{name}: codes {tuple(codes.shape)} per {granularity}, scales {tuple(scale.shape)} and zero points "
            f"{tuple(zeros.shape)} do not match: the file is damaged, or config.json belongs to a different model"
        )
    scale, zeros = scale.float().contiguous(), zeros.float().contiguous()
    if bool((scale == 0).any()):
        codes = torch.where(expand(scale, codes.shape, spec.block) == 0, expand(zeros, codes.shape, spec.block), codes)
        codes, scale = codes.to(spec.format.dtype), torch.where(scale == 0, 1.0, scale)
    try:
        return QTensor(codes.contiguous(), scale, zeros, spec)
    except NumericsError as error:
        raise CheckpointError(f"{name}: {error}; the file is damaged: download it again") from error


def config_value(config: Mapping[str, Any], key: str) -> Any:
    """One entry of a ``quantization_config``; raises CheckpointError if it is missing."""
    if key not in config:
        raise CheckpointError(f"quantization_config in config.json has no {key!r}: download the folder again")
    return config[key]
