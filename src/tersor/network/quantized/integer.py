"""Matrix products in integers: activations become codes at run time, one scale a row, and sums are int32.

On a CPU the product is oneDNN's, with the weight packed for it once; where PyTorch has no oneDNN it is
``torch._int_mm``; where it has neither, the same codes are multiplied in float.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor

# Added to a float32 below 2^22, this rounds it to an integer, ties to even, that is read from the lowest bits.
_ROUNDER = 1.5 * 2**23


@cache
def backend() -> str:
    """Who multiplies int8 matrices on this machine's CPU: ``onednn``, ``int_mm`` or ``float``."""
    left, right = torch.full((2, 32), 255, dtype=torch.uint8), torch.full((32, 16), 127, dtype=torch.int8)
    try:
        # Without VNNI the largest products would saturate.
        if torch.backends.mkldnn.is_available() and float(_onednn(left, _packed(right.t()))[0, 0]) == 255 * 127 * 32:
            return "onednn"
    except (RuntimeError, AttributeError, NotImplementedError):
        pass
    try:
        return "int_mm" if int(torch.ops.aten._int_mm(right.t(), right)[0, 0]) == 127 * 127 * 32 else "float"
    except (RuntimeError, AttributeError, NotImplementedError):
        return "float"


class Packed:
    """An int8 weight ``[out, in]`` as the backend reads it, with what its product is multiplied by."""

    weight: Any

    def __init__(self, codes: Int8[Tensor, "out in"], scale: Float[Tensor, " out"]) -> None:
        self.backend = backend() if codes.device.type == "cpu" else "float"
        self.scale = scale.contiguous()
        if self.backend == "onednn":
            self.weight = _packed(codes, self.scale)
        elif self.backend == "int_mm":
            self.weight = codes.t().contiguous()
        else:
            self.weight = codes.float()
        self._codes = codes
        self._sums: Tensor | None = None

    @property
    def sums(self) -> Float[Tensor, " out"]:
        """Σ codes · scale of every output: what a shift of all inputs by one code adds."""
        if self._sums is None:
            self._sums = self._codes.sum(1, dtype=torch.int32) * self.scale
        return self._sums

    def __call__(self, codes: Shaped[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """``codes @ weightᵀ · scale`` of int8 or uint8 codes."""
        if self.backend == "onednn":
            return _onednn(codes, self.weight)
        if self.backend == "int_mm":
            if codes.dtype == torch.uint8:  # it takes int8 only
                return self((codes.int() - 128).to(torch.int8)).add_(self.sums, alpha=128.0)
            return torch.ops.aten._int_mm(codes, self.weight) * self.scale
        return F.linear(codes.float(), self.weight) * self.scale


def _packed(codes: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    rows = codes.shape[0]
    scale = torch.ones(rows) if scale is None else scale
    weight = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
    return weight, scale, torch.zeros(rows, dtype=torch.int32)


def _onednn(codes: Tensor, weight: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, *weight, None, 1.0, 0, torch.float32, "none", [], ""
    )


def row_codes(x: Float[Tensor, "rows in"], shared: bool = False) -> tuple[Int8[Tensor, "rows in"], Tensor]:
    """int8 codes on ±127 of every row (one scale for all rows if ``shared``), and the scales ``[rows, 1]``.

    A row of zeros has codes of zero; a row with NaN or an infinity has a scale that says so.

    >>> codes, scale = row_codes(torch.tensor([[127.0, -2.5], [0.0, 0.0]]))
    >>> codes.tolist(), scale.tolist()[0]
    ([[127, -2], [0, 0]], [1.0])
    """
    low, high = _ends(x, shared)
    scale = torch.maximum(high, low.neg_()).clamp_min_(1e-30).mul_(1 / 127)
    return _rounded((x * scale.reciprocal()).add_(_ROUNDER)), scale


def shifted_codes(
    x: Float[Tensor, "rows in"], shared: bool = False
) -> tuple[UInt8[Tensor, "rows in"], Tensor, Tensor]:
    """uint8 codes of every row on its own range, with scales and shifts ``[rows, 1]``: ``x ≈ (codes + shift) · scale``.

    The range is divided by 254 and not 255: two ends that both round outwards stay inside the codes, and nothing
    has to be clamped. As few operators as can be: each costs more than its arithmetic.

    >>> codes, scale, shift = shifted_codes(torch.tensor([[0.0, 254.0, 127.0]]))
    >>> codes.tolist(), scale.item(), shift.item()
    ([[0, 254, 127]], 1.0, 0.0)
    """
    low, high = _ends(x, shared)
    low = low.clamp_max_(0.0)
    span = high.clamp_min_(1e-30).sub_(low)
    inverse = torch.div(_constant(254.0), span)
    shift = low.mul_(inverse).round_()
    codes = (x * inverse).add_(torch.sub(_constant(_ROUNDER), shift)).view(torch.int32).to(torch.uint8)
    return codes, span.mul_(_constant(1 / 254)), shift


@cache
def _constant(value: float) -> Tensor:
    """A number as a tensor: PyTorch would make one at every call."""
    return torch.tensor(value)


def _ends(x: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of each row (or of all) as ``[rows, 1]``; ``aminmax`` takes ten times as long."""
    if shared:
        return x.amin().reshape(1, 1), x.amax().reshape(1, 1)
    return x.amin(1, keepdim=True), x.amax(1, keepdim=True)


def _rounded(y: Tensor) -> Tensor:
    """The integers that ``_ROUNDER`` was added to: the lowest byte of each float32."""
    return y.view(torch.int32).to(torch.int8)


def wide_codes(x: Float[Tensor, "rows in"], shared: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """int16 codes as two int8 parts, ``codes = 256·high + low``, and the scales ``[rows, 1]``.

    They reach ±127·256, so that the high part fits.

    >>> high, low, scale = wide_codes(torch.tensor([[32512.0, -300.0]]))
    >>> (256 * high.int() + low.int()).tolist()
    [[32512, -300]]
    """
    low, high = _ends(x, shared)
    scale = torch.maximum(high, low.neg_()).clamp_min_(1e-30).mul_(1 / 32512)
    whole = (x / scale).round_()
    high = (whole / 256).round_()
    low = whole.sub_(high * 256).clamp_(-127, 127)
    return high.to(torch.int8), low.to(torch.int8), scale
