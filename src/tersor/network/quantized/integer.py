"""Integer matrix products: activations are quantized at run time, with one scale per row, and sums are int32.

On a CPU the product uses oneDNN, with the weight packed once; without oneDNN ``torch._int_mm``; without either, the
codes are multiplied in float.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor

_CPU = torch.device("cpu")
# Adding this to a float32 below 2^22 rounds it to an integer, ties to even, in its lowest bits.
_ROUNDER = 1.5 * 2**23


_working: list[str] = []


def backend() -> str:
    """The backend for int8 products on this CPU: ``onednn``, ``int_mm`` or ``float``.

    Only a working backend is remembered: a failed attempt says nothing about the next one, since it may run where
    nothing is computed, as during tracing.
    """
    if not _working:
        found = next((name for name, exact in _BACKENDS.items() if _succeeds(exact)), None)
        if found is None:
            return "float"
        _working.append(found)
    return _working[0]


def _succeeds(exact: Callable[[Tensor], bool]) -> bool:
    try:
        return exact(torch.full((32, 32), 127, dtype=torch.int8, device=_CPU))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def _onednn_exact(right: Tensor) -> bool:
    # Without VNNI the largest products saturate.
    left = torch.full((2, 32), 255, dtype=torch.uint8, device=_CPU)
    return torch.backends.mkldnn.is_available() and float(_onednn(left, _pack_onednn(right))[0, 0]) == 255 * 127 * 32


def _int_mm_exact(right: Tensor) -> bool:
    return int(torch.ops.aten._int_mm(right, right)[0, 0]) == 127 * 127 * 32


_BACKENDS = {"onednn": _onednn_exact, "int_mm": _int_mm_exact}


class Packed:
    """An int8 weight ``[out, in]`` in the backend's layout, with its scales.

    Args:
        codes: the weight.
        scale: one for every output, or one for all.
        source: the tensor that stores the codes; ``codes`` itself if None.
    """

    weight: Any

    def __init__(
        self, codes: Int8[Tensor, "out in"], scale: Float[Tensor, "..."], source: Tensor | None = None
    ) -> None:
        self.backend = backend() if codes.device.type == "cpu" else "float"
        self._stored, self._versions = scale, (version(codes if source is None else source), version(scale))
        self.scale = scale.reshape(-1).expand(codes.shape[0]).contiguous()
        if self.backend == "onednn":
            self.weight = _pack_onednn(codes, self.scale)
        elif self.backend == "int_mm":
            # A copy even for a single row: a view would keep the codes alive.
            self.weight = codes.t().clone(memory_format=torch.contiguous_format)
        else:
            self.weight = codes.float()
        # Σ codes · scale of every output: the effect of shifting all inputs by one code.
        self.sums: Float[Tensor, " out"] = codes.sum(1, dtype=torch.int32) * self.scale

    def is_of(self, source: Tensor, scale: Tensor) -> bool:
        """Whether the stored codes and scales are still those that were packed."""
        return self._stored is scale and self._versions == (version(source), version(scale))

    def __call__(self, codes: Shaped[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """``codes @ weightᵀ · scale`` of int8 or uint8 codes."""
        if self.backend == "onednn":
            return _onednn(codes, self.weight)
        if self.backend == "int_mm":
            if codes.dtype == torch.uint8:  # int_mm accepts only int8
                return self((codes.int() - 128).to(torch.int8)).add_(self.sums, alpha=128.0)
            return torch.ops.aten._int_mm(codes, self.weight) * self.scale
        kind = codes.device.type
        # Sums need the 24 bits of float32.
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return F.linear(codes.float(), self.weight) * self.scale


def version(tensor: Tensor) -> int:
    """The number of writes to a tensor; inference tensors do not count them."""
    return -1 if tensor.is_inference() else tensor._version


def _pack_onednn(codes: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    rows = codes.shape[0]
    scale = torch.ones(rows, dtype=torch.float32, device=_CPU) if scale is None else scale
    weight = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
    return weight, scale, torch.zeros(rows, dtype=torch.int32, device=_CPU)


def _onednn(codes: Tensor, weight: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, *weight, None, 1.0, 0, torch.float32, "none", [], ""
    )


def row_codes(x: Float[Tensor, "rows in"], shared: bool = False) -> tuple[Int8[Tensor, "rows in"], Tensor]:
    """int8 codes in ±127 for each row (or with one scale for all rows, if ``shared``), and the scales ``[rows, 1]``.

    A row of zeros has zero codes; a row with NaN or infinity has a scale of NaN or infinity.

    >>> codes, scale = row_codes(torch.tensor([[127.0, -2.5], [0.0, 0.0]]))
    >>> codes.tolist(), scale.tolist()[0]
    ([[127, -2], [0, 0]], [1.0])
    """
    low, high = _limits(x, shared)
    scale = torch.maximum(high, low.neg_()).clamp_min_(1e-30).mul_(1 / 127)
    return _read_rounded((x * scale.reciprocal()).add_(_ROUNDER)), scale


def shifted_codes(
    x: Float[Tensor, "rows in"], shared: bool = False
) -> tuple[UInt8[Tensor, "rows in"], Tensor, Tensor]:
    """uint8 codes for the range of each row, with scales and shifts ``[rows, 1]``: ``x ≈ (codes + shift) · scale``.

    The range is divided by 254, not 255, so that both ends can round outwards without clamping. There are few
    operators, since each costs more than its arithmetic.

    >>> codes, scale, shift = shifted_codes(torch.tensor([[0.0, 254.0, 127.0]]))
    >>> codes.tolist(), scale.item(), shift.item()
    ([[0, 254, 127]], 1.0, 0.0)
    """
    low, high = _limits(x, shared)
    low = low.clamp_max_(0.0)
    span = high.clamp_min_(1e-30).sub_(low)
    inverse = torch.div(_constant(254.0), span)
    shift = low.mul_(inverse).round_()
    codes = (x * inverse).add_(torch.sub(_constant(_ROUNDER), shift)).view(torch.int32).to(torch.uint8)
    return codes, span.mul_(_constant(1 / 254)), shift


def _constant(value: float) -> Tensor:
    """A scalar tensor, created at every call only in graphs, which cannot read the cache."""
    return _scalar(value) if torch.compiler.is_compiling() else _cached(value)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=_CPU)


_cached = cache(_scalar)


def _limits(x: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """The minimum and maximum of each row (or of all) as ``[rows, 1]``; ``aminmax`` is ten times slower."""
    if shared:
        return x.amin((0, 1), keepdim=True), x.amax((0, 1), keepdim=True)
    return x.amin(1, keepdim=True), x.amax(1, keepdim=True)


def _read_rounded(y: Tensor) -> Tensor:
    """The rounded integers after adding ``_ROUNDER``: the lowest byte of each float32."""
    return y.view(torch.int32).to(torch.int8)


def wide_codes(x: Float[Tensor, "rows in"], shared: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """int16 codes as two int8 parts, ``codes = 256·high + low``, and the scales ``[rows, 1]``.

    The range is ±127·256, so that the high part fits in int8.

    >>> high, low, scale = wide_codes(torch.tensor([[32512.0, -300.0]]))
    >>> (256 * high.int() + low.int()).tolist()
    [[32512, -300]]
    """
    low, high = _limits(x, shared)
    scale = torch.maximum(high, low.neg_()).clamp_min_(1e-30).mul_(1 / 32512)
    codes = (x / scale).round_()
    high = (codes / 256).round_()
    low = codes.sub_(high * 256).clamp_(-127, 127)
    return high.to(torch.int8), low.to(torch.int8), scale
