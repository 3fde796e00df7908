"""A weight as a product of two thinner ones, plainly or for the inputs that it gets."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.errors import NumericsError


@dataclass(frozen=True, eq=False)
class Factors:
    """W ≈ second·first at any rank, the best first.

    Args:
        first: ``[size, columns]``, second: ``[outputs, size]``, in float64; rank r takes the first r of each.
        loss: half the squared error that each rank leaves, from 0 to the full one: ``[size + 1]``; it does not rise.
    """

    first: Float[Tensor, "size columns"]
    second: Float[Tensor, "outputs size"]
    loss: Float[Tensor, " ranks"]

    def at(self, rank: int) -> tuple[Tensor, Tensor]:
        """The two weights of a rank, in float32: ``[rank, columns]`` and ``[outputs, rank]``."""
        return self.first[:rank].float().contiguous(), self.second[:, :rank].float().contiguous()


def factors(
    weight: Float[Tensor, "outputs columns"],
    gram: Float[Tensor, "columns columns"] | None = None,
    rows: Float[Tensor, " outputs"] | None = None,
    damping: float = 1e-4,
) -> Factors:
    """The singular value decomposition of D·W·S, taken back by D⁻¹ and S⁻¹.

    S·Sᵀ is the covariance of the inputs, D² how much the network depends on each output, so that what is cut is what
    matters least to the outputs (whitening as in arXiv 2403.07378, rows weighted as in arXiv 2207.00112). Without them
    it is the decomposition of the weight itself.

    Args:
        gram: the covariance of the inputs.
        rows: the weight of each output's squared error.
        damping: added to the diagonals, as a share of their means.

    Raises:
        NumericsError: the weight, or what it is whitened by, is not finite.

    >>> found = factors(torch.outer(torch.arange(1.0, 4), torch.arange(1.0, 5)))
    >>> first, second = found.at(1)
    >>> torch.allclose(second @ first, torch.outer(torch.arange(1.0, 4), torch.arange(1.0, 5)), atol=1e-4)
    True
    """
    wide = weight.double()
    spread = torch.eye(wide.shape[1], dtype=torch.float64)
    if gram is not None and gram.diagonal().mean() > 0:
        covariance = gram.double()
        spread = torch.linalg.cholesky(covariance + damping * covariance.diagonal().mean() * spread)
    scale = torch.ones(len(wide), dtype=torch.float64)
    if rows is not None and rows.mean() > 0:
        scale = (rows.double() + damping * rows.double().mean()).sqrt()
    whole = scale[:, None] * wide @ spread
    if not whole.isfinite().all():
        raise NumericsError("a weight, or the covariance of its inputs, is NaN or infinite")
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    half = values.sqrt()
    first = torch.linalg.solve_triangular(spread, half[:, None] * right, upper=False, left=False)
    tail = values.square().flip(0).cumsum(0).flip(0) / 2
    return Factors(first, left * half / scale[:, None], torch.cat((tail, torch.zeros(1, dtype=torch.float64))))
