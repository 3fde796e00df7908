"""H = 2·X·Xᵀ of a layer's inputs, from which every second-order solver starts."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tersor.errors import CalibrationError


@dataclass(frozen=True, eq=False)
class Gram:
    """The Hessian of ‖WX − ŴX‖² for every row of W, accumulated over batches.

    Attributes:
        hessian: ``[groups, in, in]`` float32, divided by the rows that were seen: 2·mean(x·xᵀ).
        rows: how many tokens or positions were counted; padded ones are not.
    """

    hessian: Float[Tensor, "groups columns columns"]
    rows: int

    @classmethod
    def of(cls, x: Float[Tensor, "groups rows columns"], counted: Bool[Tensor, " rows"] | None = None) -> "Gram":
        """The Gram matrix of one batch; float32 products whatever the inputs' format.

        Raises:
            CalibrationError: where an input is NaN or infinite.

        >>> gram = Gram.of(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]))
        >>> gram.hessian.tolist(), gram.rows
        ([[[10.0, 2.0], [2.0, 4.0]]], 2)
        """
        if counted is not None:
            x = x[:, counted]
        x, rows = x.detach().float(), x.shape[1]
        found = x.transpose(1, 2) @ x
        if not torch.isfinite(found).all():
            bad = int((~torch.isfinite(x)).sum())
            raise CalibrationError(f"{bad} of the layer's inputs are NaN or infinite, so that nothing can be solved")
        return cls(found.mul_(2 / max(rows, 1)), rows)

    def merged(self, other: "Gram") -> "Gram":
        """Both together, each counting as its rows."""
        rows = self.rows + other.rows
        return Gram(torch.lerp(self.hessian, other.hessian, other.rows / max(rows, 1)), rows)
