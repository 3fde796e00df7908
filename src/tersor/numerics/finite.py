"""Whether a tensor contains NaN or infinity, checked on its sum first, which is many times faster."""

from jaxtyping import Shaped
from torch import Tensor


def all_finite(x: Shaped[Tensor, "..."]) -> bool:
    """Whether no value is NaN or infinite.

    A finite sum proves it; any other sum may be an overflow, so every value is checked.

    >>> import torch
    >>> all_finite(torch.tensor([1e38, 3e38])), all_finite(torch.tensor([1.0, float("inf")]))
    (True, False)
    """
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def has_nan(x: Shaped[Tensor, "..."]) -> bool:
    """Whether any value is NaN; infinities do not count, even if they add up to NaN.

    >>> import torch
    >>> has_nan(torch.tensor([float("inf"), -float("inf")])), has_nan(torch.tensor([1.0, float("nan")]))
    (False, True)
    """
    return bool(x.sum().isnan()) and bool(x.isnan().any())
