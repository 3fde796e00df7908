"""Codes in 32-bit words, row by row, as the layouts of quantized language models store them; what they share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from tersor.errors import CheckpointError, NumericsError
from tersor.numerics import QTensor, QuantSpec, expand, pack, packed_bytes, unpack


def to_words(codes: Integer[Tensor, "rows n"], bits: int) -> Int[Tensor, "rows words"]:
    """Unsigned codes as int32 words: in each row one stream of bits, the lowest first, filled up with zeros.

    >>> to_words(torch.tensor([[1, 2, 15, 0, 0, 0, 0, 0, 3]]), 4).tolist()
    [[3873, 3]]
    """
    rows, count = codes.shape
    # Whole words hold whole codes every 32 codes, whatever their width.
    even = torch.nn.functional.pad(codes.to(torch.uint8), (0, -count % 32))
    return pack(even, bits).view(torch.int32).reshape(rows, -1)[:, : word_count(count, bits)].contiguous()


def from_words(name: str, words: Int[Tensor, "rows words"], bits: int, count: int) -> UInt8[Tensor, "rows n"]:
    """The ``count`` codes of each row of what ``to_words`` made of the weight ``name``.

    Raises:
        CheckpointError: the rows have another length.
    """
    if words.shape[1] != word_count(count, bits):
        raise CheckpointError(
            f"{name}: {words.shape[1]} words do not hold {count} codes of {bits} bits: the file is damaged, "
            "or config.json belongs to another one"
        )
    even = -(-count // 32) * 32
    full = torch.nn.functional.pad(words, (0, word_count(even, bits) - words.shape[1])).contiguous()
    codes = unpack(full.view(torch.uint8).reshape(-1), bits, len(full) * even, signed=False)
    return codes.reshape(len(full), even)[:, :count]


def word_count(count: int, bits: int) -> int:
    """How many words ``count`` codes take.

    >>> word_count(172, 4)
    22
    """
    return -(-packed_bytes(count, bits) // 4)


def raised(codes: Integer[Tensor, "..."] | Float[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Signed codes or zero points, counted from the lowest one: 2^(bits − 1) more.

    >>> raised(torch.tensor([-8, 0, 7]), 4).tolist()
    [0, 8, 15]
    """
    return codes.to(torch.int32) + 2 ** (bits - 1)


def lowered(codes: Integer[Tensor, "..."], bits: int) -> Integer[Tensor, "..."]:
    """What ``raised`` was made from, as int8."""
    return (codes.to(torch.int32) - 2 ** (bits - 1)).to(torch.int8)


def module(name: str) -> str:
    """The layer whose weight ``name`` is; raises CheckpointError for any other parameter.

    >>> module("model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj'
    """
    if not name.endswith(".weight"):
        raise CheckpointError(f"{name} is no weight of a layer, which ends in .weight: leave it in float by a rule")
    return name.removesuffix(".weight")


def group_size(spec: QuantSpec, channel: int = -1) -> int:
    """The group of ``spec`` as configurations write it, ``channel`` for one scale a row."""
    return spec.granularity.size or channel


def check_weight(name: str, shape: Sequence[int], spec: QuantSpec, layout: str, bits: Sequence[int]) -> None:
    """What no layout here can do without: a matrix of signed integers, scaled per channel or by whole groups.

    Raises:
        CheckpointError: naming the layer, the value and the remedy.
    """
    module(name)
    rest = "leave this layer in float by a rule"
    if len(shape) != 2:
        raise CheckpointError(f"{name} has the shape {tuple(shape)}, {layout} holds matrices only: {rest}")
    found = spec.format
    if found.kind != "int" or not found.signed or found.bits not in bits:
        known = ", ".join(f"int{b}" for b in bits)
        raise CheckpointError(f"{name} is to be {found}, {layout} holds {known}: take one of them, or {rest}")
    kind, size = spec.granularity.kind, spec.granularity.size
    if kind not in ("channel", "group") or spec.granularity.axis:
        raise CheckpointError(
            f"{name} has scales per {spec.granularity}, {layout} per channel or group: take one of them"
        )
    if size and shape[1] % size:
        raise CheckpointError(
            f"{name} has {shape[1]} inputs, which groups of {size} do not divide: "
            f"take per channel or a group that divides them, or {rest}"
        )


def stored_scale(name: str, qtensor: QTensor, dtype: torch.dtype) -> Float[Tensor, "out groups"]:
    """The scale in ``dtype``; raises CheckpointError if it is not the one that the codes were made for."""
    scale = qtensor.scale.to(dtype)
    if not torch.equal(scale.float(), qtensor.scale):
        wanted = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{name}: its scales are no numbers of {wanted}, in which they would be stored: "
            f"quantize it with scale_dtype={wanted!r}"
        )
    return scale


def part(name: str, suffix: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor that stands as ``suffix`` for the weight ``name``; raises CheckpointError if there is none."""
    wanted = f"{module(name)}.{suffix}"
    if wanted not in tensors:
        raise CheckpointError(f"{wanted} is missing, a part of the quantized {name}: download the folder again")
    return tensors[wanted]


def packed_weights(names: Iterable[str]) -> set[str]:
    """The weights of which ``names`` hold a ``qweight``.

    >>> packed_weights(["head.qweight", "head.scales", "norm.weight"])
    {'head.weight'}
    """
    return {n.removesuffix("qweight") + "weight" for n in names if n.endswith(".qweight")}


def assembled(name: str, codes: Tensor, scale: Tensor, zeros: Tensor, size: int, symmetric: bool, bits: int) -> QTensor:
    """A weight from signed codes [out, in], scale and zero points [out, groups], all as they were stored.

    Groups are of ``size``, or one a row if it is −1. A scale of 0, which some writers store for a group that is all
    zero (or so small that FP16 has no other number), becomes 1 and the group's codes its zero point: the same values.

    Raises:
        CheckpointError: the parts do not belong together, or a scale is negative or not finite.
    """
    granularity = f"group:{size}" if size > 0 else "channel"
    stored = str(scale.dtype).removeprefix("torch.")
    spec = QuantSpec(f"int{bits}", granularity, symmetric=symmetric, scale_dtype=stored)
    expected = spec.granularity.scale_shape(codes.shape)
    if scale.shape != expected or zeros.shape != expected:
        raise CheckpointError(
            f"{name}: codes {tuple(codes.shape)} per {granularity}, scales {tuple(scale.shape)} and zero points "
            f"{tuple(zeros.shape)} do not belong together: the file is damaged, or config.json belongs to another one"
        )
    scale, zeros = scale.float().contiguous(), zeros.float().contiguous()
    if bool((scale == 0).any()):
        codes = torch.where(expand(scale, codes.shape, spec.block) == 0, expand(zeros, codes.shape, spec.block), codes)
        codes, scale = codes.to(spec.format.dtype), torch.where(scale == 0, 1.0, scale)
    try:
        return QTensor(codes.contiguous(), scale, zeros, spec)
    except NumericsError as error:
        raise CheckpointError(f"{name}: {error}; the file is damaged: download it again") from error


def field(config: Mapping[str, Any], key: str) -> Any:
    """One entry of a ``quantization_config``; raises CheckpointError if it is missing."""
    if key not in config:
        raise CheckpointError(f"the quantization_config of config.json lacks {key!r}: download the folder again")
    return config[key]
