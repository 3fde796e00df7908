"""The factor of H⁻¹ that second-order solvers walk along, without ever inverting H."""

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.errors import CalibrationError

_STRONGEST = 10.0


def inverse_factor(
    hessian: Float[Tensor, "columns columns"], damping: float, name: str
) -> tuple[Float[Tensor, "columns columns"], float]:
    """Upper triangular U with UᵀU = (H + λ·mean(diag H)·I)⁻¹, and the λ that it took.

    H = R·Rᵀ with R upper, from the Cholesky factor of the flipped matrix; then U = R⁻¹ by one triangular solve. λ
    starts at ``damping`` and is raised tenfold until the factor exists.

    Raises:
        CalibrationError: where even λ = 10 gives none.

    >>> u, damping = inverse_factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.0, "fc")
    >>> torch.allclose(u.T @ u, torch.tensor([[2.0, 1.0], [1.0, 2.0]]).inverse()), damping
    (True, 0.0)
    """
    mean = hessian.diagonal().mean()
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed and bool(torch.isfinite(lower).all()):
            upper = lower.flip(0, 1)
            return torch.linalg.solve_triangular(upper, torch.eye(len(upper), dtype=upper.dtype), upper=True), damping
        damping = max(10 * damping, 1e-4)
        if damping > _STRONGEST:
            raise CalibrationError(
                f"layer {name}: its Hessian is not positive definite even with damping {_STRONGEST:g}; are its inputs "
                "all alike, or infinite? Calibrate with more and other data, or use the solver rtn for it"
            )
