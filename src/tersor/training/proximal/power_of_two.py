"""The projection on zero and powers of two."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tersor.numerics import QTensor, QuantSpec
from tersor.training.proximal.base import Projection
from tersor.training.proximal.levels import on_levels, refuses_levels

# Of 2, 3 and 4 bits: 1, 3 and 7 magnitudes, up to 2⁰, 2² and 2⁶.
_FORMATS = {2: "int2", 3: "int4", 4: "int8"}


@dataclass(frozen=True)
class PowerOfTwo(Projection):
    """The nearest ``α·p`` with p ∈ {0, ±1, ±2, ±4 …}: the exact minimum of ‖w − αp‖² over α and p, by sorting.

    One of the sets of Leng et al., arXiv 1707.09870: products are shifts. ``bits`` count signs and exponents: 2^(bits −
    1) − 1 magnitudes and zero. The powers are stored as codes of an integer format: int2, int4 and int8 for 2, 3 and 4
    bits.

    Args:
        bits: of an exponent code; 2 is ternary.
        granularity: which weights share an α, as text.

    >>> import torch
    >>> PowerOfTwo(3)(torch.tensor([[0.1, -0.25, 0.5, -1.0, 0.7]]))
    tensor([[ 0.0000, -0.2660,  0.5320, -1.0640,  0.5320]])
    >>> PowerOfTwo(3).qtensor(torch.tensor([[0.1, -0.25, 0.5, -1.0, 0.7]])).codes
    tensor([[ 0, -1,  2, -4,  2]], dtype=torch.int8)
    """

    bits: Literal[2, 3, 4] = 4
    granularity: str = "channel"

    @property
    def spec(self) -> QuantSpec:
        """The smallest integer format that holds the powers."""
        return QuantSpec(_FORMATS[self.bits], self.granularity)

    @property
    def levels(self) -> tuple[int, ...]:
        """The magnitudes beside zero.

        >>> PowerOfTwo(3).levels
        (1, 2, 4)
        """
        return tuple(2**k for k in range(2 ** (self.bits - 1) - 1))

    def refuses(self, spec: QuantSpec) -> str:
        """Symmetric signed codes hold it that reach its largest power."""
        return refuses_levels(spec, self.levels[-1])

    def _nearest(self, weight: Tensor, spec: QuantSpec) -> QTensor:
        return on_levels(weight, self.levels, spec)
