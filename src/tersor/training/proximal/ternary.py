"""The projection on {−α, 0, α}."""

from dataclasses import dataclass

from torch import Tensor

from tersor.numerics import QTensor, QuantSpec
from tersor.training.proximal.base import Projection
from tersor.training.proximal.levels import on_levels, refuses_levels


@dataclass(frozen=True)
class Ternary(Projection):
    """The nearest ``α·t`` with t ∈ {−1, 0, 1}: the exact minimum of ‖w − αt‖² over α and t, by sorting.

    If the k largest |w| become ±α, the best α is their mean and the error Σw² − (Σ_k|w|)²/k, so the best k has the
    largest (Σ_k|w|)²/k. Ternary Weight Networks (arXiv 1605.04711) approximate it by the threshold 0.7·mean|w|; Leng et
    al. (arXiv 1707.09870) alternate between α and t.

    Args:
        granularity: which weights share an α, as text.

    >>> import torch
    >>> Ternary()(torch.tensor([[1.0, -3.0, 0.2], [0.0, 0.5, 0.4]]))
    tensor([[ 0.0000, -3.0000,  0.0000],
            [ 0.0000,  0.4500,  0.4500]])
    """

    granularity: str = "channel"

    @property
    def spec(self) -> QuantSpec:
        """Ternary codes."""
        return QuantSpec("ternary", self.granularity)

    def refuses(self, spec: QuantSpec) -> str:
        """Any symmetric signed codes hold it."""
        return refuses_levels(spec, 1)

    def _nearest(self, weight: Tensor, spec: QuantSpec) -> QTensor:
        return on_levels(weight, (1,), spec)
