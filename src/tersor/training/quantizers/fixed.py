"""Fixed ranges: the observers' or the solver's grid, which training does not move."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.numerics import fakequant  # noqa: F401  (registers torch.ops.tersor)
from tersor.numerics.ranges import expand
from tersor.training.quantizers.base import Quantizer, Start
from tersor.training.quantizers.scales import times


@dataclass(frozen=True)
class Fixed:
    """The grid of calibration stays; only weights are trained, with the straight-through gradient.

    Jacob et al., arXiv 1712.05877; Bengio et al., arXiv 1308.3432.

    >>> from tersor.numerics import QuantSpec
    >>> start = Start("x", QuantSpec("int4"), torch.tensor(0.25), torch.tensor(0.0))
    >>> x = torch.tensor([0.3, 5.0], requires_grad=True)
    >>> y = Fixed()(start)(x)
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([0.25, 1.75], [1.0, 0.0])
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"int", "ternary", "float"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight", "activation"})

    def __call__(self, start: Start) -> Quantizer:
        return FixedGrid(start)


class FixedGrid(Quantizer):
    """A quantizer with constant parameters, kept as buffers."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.register_buffer("scale", start.scale.detach().clone())
        self.register_buffer("zero_point", start.zero_point.detach().clone())

    def quantized(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``x`` on the grid; a float format saturates."""
        if self.spec.format.kind != "float":
            return super().quantized(x, factor)
        scale = expand(self.grid(x, factor)[0], x.shape, self.spec.block)
        return torch.ops.tersor.cast(x, self.spec.format.name, scale)

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The start's grid."""
        return times(self.scale, factor), self.zero_point
