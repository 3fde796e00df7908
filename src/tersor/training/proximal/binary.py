"""The projection on {−α, α}."""

from dataclasses import dataclass

from torch import Tensor

from tersor.numerics import QTensor, QuantSpec, quantize_tensor
from tersor.training.proximal.base import Projection


@dataclass(frozen=True)
class Binary(Projection):
    """``α·sign(w)`` with α the mean of |w|: the exact minimum of ‖w − αb‖² over α and b ∈ {−1, 1} (arXiv 1603.05279).

    For given signs the error is Σw² − 2αΣ|w| + nα², least at α = Σ|w|/n. Zero becomes α.

    Args:
        granularity: which weights share an α, as text.

    >>> import torch
    >>> Binary()(torch.tensor([[1.0, -3.0], [0.0, 0.5]]))
    tensor([[ 2.0000, -2.0000],
            [ 0.2500,  0.2500]])
    """

    granularity: str = "channel"

    @property
    def spec(self) -> QuantSpec:
        """Binary codes."""
        return QuantSpec("binary", self.granularity)

    def refuses(self, spec: QuantSpec) -> str:
        """Only binary codes hold it."""
        return "" if spec.format.name == "binary" else "its only format is binary"

    def _nearest(self, weight: Tensor, spec: QuantSpec) -> QTensor:
        return quantize_tensor(weight, spec)
