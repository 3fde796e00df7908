"""H = 2·X·Xᵀ of a layer's inputs, which every second-order solver uses."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tersor.errors import CalibrationError
from tersor.numerics import all_finite


@dataclass(frozen=True, eq=False)
class Gram:
    """The Hessian of ‖WX − ŴX‖² for every row of W, accumulated over batches.

    Attributes:
        hessian: ``[groups, in, in]`` float32, divided by the number of rows: 2·mean(x·xᵀ); ``between`` two values
            ``[1, columns, others]``.
        rows: the number of tokens or positions, without padding.
    """

    hessian: Float[Tensor, "groups columns others"]
    rows: int

    @classmethod
    def of(cls, x: Float[Tensor, "groups rows columns"], token_mask: Bool[Tensor, " rows"] | None = None) -> "Gram":
        """The Gram matrix of one batch, in float32 for inputs of any format.

        Raises:
            CalibrationError: if an input is NaN or infinite.

        >>> gram = Gram.of(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]))
        >>> gram.hessian.tolist(), gram.rows
        ([[[10.0, 2.0], [2.0, 4.0]]], 2)
        """
        if token_mask is not None:
            x = x[:, token_mask]
        x, rows = x.detach(), x.shape[1]
        found = _product(x[0], x[0])[None] if len(x) == 1 else x.float().transpose(1, 2) @ x.float()
        if not all_finite(found):
            bad = int((~torch.isfinite(x)).sum())
            raise CalibrationError(f"{bad} of the layer's inputs are NaN or infinite")
        return cls(found.mul_(2 / max(rows, 1)), rows)

    @classmethod
    def between(
        cls, a: Float[Tensor, "rows columns"], b: Float[Tensor, "rows others"], token_mask: Any = None
    ) -> "Gram":
        """2·mean(a·bᵀ) of two values with the same rows, as one group.

        >>> Gram.between(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]])).hessian.tolist()
        [[[4.0, 6.0], [0.0, 0.0]]]
        """
        if token_mask is not None:
            a, b = a[token_mask], b[token_mask]
        return cls(_product(a.detach(), b.detach()).mul_(2 / max(len(a), 1))[None], len(a))

    def merged(self, other: "Gram") -> "Gram":
        """Both together, each weighted by its rows."""
        rows = self.rows + other.rows
        return Gram(torch.lerp(self.hessian, other.hessian, other.rows / max(rows, 1)), rows)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ·b, float32.

    Products of BF16 values added in float32 are exact, and twice as fast on CPUs that support them; PyTorch offers
    them as a lower precision of float32 products.
    """
    precision = torch.get_float32_matmul_precision()
    exact = a.dtype == b.dtype == torch.bfloat16
    try:
        torch.set_float32_matmul_precision("medium" if exact else precision)
        return a.float().t() @ b.float()
    finally:
        torch.set_float32_matmul_precision(precision)
