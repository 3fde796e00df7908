"""Rotations by randomized Hadamard matrices, with a fast transform."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.errors import NumericsError

# Elements processed at once, in float64.
_CHUNK = 2**20


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix R that spreads every coordinate over all others.

    For n = 2^k, or n = 2^k·m with m the order of a Paley-I Hadamard matrix (12, 20, 44 …), R is a Hadamard matrix with
    random signs, divided by √n (Ashkboos et al., QuaRot, arXiv 2404.00456): log n additions per element instead of n
    multiplications. For other n it is a random orthogonal matrix. The same size and seed give the same R.

    Raises:
        NumericsError: the size is below 1.

    >>> rotation = Rotation(4)
    >>> rotation.kind, rotation(torch.eye(4)).abs()
    ('hadamard', tensor([[0.5000, 0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000, 0.5000]]))
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise NumericsError(f"a rotation cannot have {self.size} dimensions: pass the width of the network")

    @property
    def kind(self) -> str:
        """``hadamard`` or ``orthogonal``."""
        return "hadamard" if _core(self.size) else "orthogonal"

    def __call__(self, x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
        """Apply ``v → v·R`` along dimension ``dim``; computed in float64, returned in x's dtype.

        Raises NumericsError if the dimension has another size.
        """
        if x.shape[dim] != self.size:
            raise NumericsError(f"a rotation of size {self.size} cannot rotate a dimension of size {x.shape[dim]}")
        moved = x.detach().movedim(dim, -1)
        rows = moved.reshape(-1, self.size)
        rotated = [self._rotate(chunk.double()).to(x.dtype) for chunk in rows.split(max(1, _CHUNK // self.size))]
        return torch.cat(rotated).reshape(moved.shape).movedim(-1, dim) if rotated else x

    def _rotate(self, rows: Tensor) -> Tensor:
        if self.kind == "orthogonal":
            return rows @ self._matrix.to(rows.device)
        return _hadamard_transform(rows * self._signs.to(rows.device)) / self.size**0.5

    @cached_property
    def _signs(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, 2, (self.size,), generator=generator).double() * 2 - 1

    @cached_property
    def _matrix(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        q, r = torch.linalg.qr(torch.randn(self.size, self.size, generator=generator, dtype=torch.float64))
        # Multiplying by the signs of R's diagonal makes the distribution uniform.
        return q * r.diagonal().sign()


def _hadamard_transform(x: Tensor) -> Tensor:
    """``x @ (H_m ⊗ H_2 ⊗ … ⊗ H_2)`` over the last dimension."""
    n, core = x.shape[-1], _core(x.shape[-1])
    y = x.unflatten(-1, (core, n // core))
    if core > 1:
        y = torch.einsum("...mk,mn->...nk", y, _paley(core).to(y.device))
    width = 1
    while width < n // core:
        pairs = y.unflatten(-1, (-1, 2, width))
        a, b = pairs.unbind(-2)
        y = torch.stack([a + b, a - b], -2).flatten(-3)
        width *= 2
    return y.flatten(-2)


def _core(size: int) -> int:
    """The smallest m with size = 2^k·m for which a Hadamard matrix of order m is known, or 0."""
    odd = size
    while odd % 2 == 0:
        odd //= 2
    if odd == 1:
        return 1
    return next((m for m in (4 * odd * 2**k for k in range(size.bit_length())) if size % m == 0 and _prime(m - 1)), 0)


def _prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, int(n**0.5) + 1))


def _paley(order: int) -> Tensor:
    """The Hadamard matrix of order q + 1 for a prime q with q mod 4 = 3: I + S, with S from the squares modulo q."""
    q = order - 1
    square = torch.full((q,), -1.0, dtype=torch.float64)
    square[torch.arange(q) ** 2 % q], square[0] = 1.0, 0.0
    index = torch.arange(q)
    s = torch.zeros(order, order, dtype=torch.float64)
    s[0, 1:], s[1:, 0] = 1, -1
    s[1:, 1:] = square[(index[:, None] - index) % q]
    return s + torch.eye(order, dtype=torch.float64)
