"""The factors of H and of H⁻¹ that second-order solvers use, computed without inverting H."""

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.errors import CalibrationError

_STRONGEST = 10.0


def upper_factor(
    hessian: Float[Tensor, "columns columns"], damping: float, name: str, order: Tensor | None = None
) -> tuple[Float[Tensor, "columns columns"], float]:
    """Upper triangular R with R·Rᵀ = H + λ·mean(diag H)·I, and the λ used.

    It is the Cholesky factor of the flipped matrix, flipped. λ starts at ``damping`` and is raised tenfold until the
    factor exists. ``order``: the order of H's rows and columns in which it is factored.

    Raises:
        CalibrationError: if there is no factor even with λ = 10.

    >>> r, damping = upper_factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.0, "fc")
    >>> torch.allclose(r @ r.T, torch.tensor([[2.0, 1.0], [1.0, 2.0]])), damping
    (True, 0.0)
    """
    mean = hessian.diagonal().mean()
    backwards = torch.arange(len(hessian), device=hessian.device) if order is None else order
    backwards = backwards.flip(0)
    damped = hessian[backwards][:, backwards]
    diagonal = damped.diagonal().clone()
    while True:
        damped.diagonal().copy_(diagonal + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        # A value in a row that is not finite makes the row's diagonal not finite, too.
        if not failed and bool(torch.isfinite(lower.diagonal()).all()):
            return lower.flip(0, 1), damping
        damping = max(10 * damping, 1e-4)
        if damping > _STRONGEST:
            raise CalibrationError(
                f"layer {name}: its Hessian is not positive definite even with damping {_STRONGEST:g}; are its inputs "
                "all alike, or infinite? Calibrate with more and other data, or use the solver rtn for it"
            )


def inverse_factor(
    hessian: Float[Tensor, "columns columns"], damping: float, name: str
) -> tuple[Float[Tensor, "columns columns"], float]:
    """Upper triangular U with UᵀU = (H + λ·mean(diag H)·I)⁻¹, and the λ used: U = R⁻¹ of ``upper_factor``.

    Raises:
        CalibrationError: as ``upper_factor`` does.

    >>> u, damping = inverse_factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.0, "fc")
    >>> torch.allclose(u.T @ u, torch.tensor([[2.0, 1.0], [1.0, 2.0]]).inverse()), damping
    (True, 0.0)
    """
    upper, used = upper_factor(hessian, damping, name)
    one = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, one, upper=True), used
