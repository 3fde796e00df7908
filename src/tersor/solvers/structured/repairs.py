"""Repair of a layer that lost inputs, from the moments of its inputs and of the outputs that it should have."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

HELD, SMALL = 4, 4096
"""Every fourth batch is held out beside, where a layer has at most so many columns."""
SCARCE, STRENGTHS = 20, (1e-2, 1e-1, 1.0)
"""With fewer rows for each column, these strengths of a ridge are tried, too, on what is held out."""


@dataclass
class Moments:
    """Sums over rows, in float64, of values less the means of the first rows, so that large means cancel nothing.

    Args:
        columns, outputs: the sizes of a row of inputs and of wanted outputs.

    Attributes:
        held: the sums of some of the batches, which are in all of these, too; None: there were too few batches.
    """

    columns: int
    outputs: int = 0

    def __post_init__(self) -> None:
        self.rows, self.batches, self.held = 0, 0, None
        self.from_x, self.from_y = torch.zeros(self.columns), torch.zeros(self.outputs)
        self.x, self.y = torch.zeros(self.columns).double(), torch.zeros(self.outputs).double()
        self.xx = torch.zeros(self.columns, self.columns).double()
        self.xy = torch.zeros(self.columns, self.outputs).double()

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Rows of inputs ``[rows, columns]`` and of wanted outputs ``[rows, outputs]``."""
        if not self.rows and len(x):
            self.from_x = x.mean(0)
            self.from_y = self.from_y if y is None else y.mean(0)
        self.batches += 1
        x, y = x - self.from_x, None if y is None else y - self.from_y
        self._sum(x, y)
        if y is not None and self.columns <= SMALL and self.batches % HELD == 0:
            if self.held is None:
                self.held = self._like(slice(None))
            self.held._sum(x, y)

    def _sum(self, x: Tensor, y: Tensor | None) -> None:
        self.rows += len(x)
        self.x += x.sum(0).double()
        self.xx += (x.T @ x).double()
        if y is not None:
            self.y += y.sum(0).double()
            self.xy += (x.T @ y).double()

    def _like(self, columns: Tensor | slice) -> "Moments":
        """Without rows, less the same means."""
        found = Moments(len(self.from_x[columns]), self.outputs)
        found.from_x, found.from_y = self.from_x[columns], self.from_y
        return found

    def of(self, columns: Tensor) -> "Moments":
        """The moments of some of the inputs."""
        found = self._like(columns)
        found.rows, found.batches = self.rows, self.batches
        found.x, found.y = self.x[columns], self.y
        found.xx, found.xy = self.xx[columns][:, columns], self.xy[columns]
        found.held = None if self.held is None else self.held.of(columns)
        return found

    @property
    def scarce(self) -> bool:
        """Whether there are few rows for so many columns, and some that are held out."""
        return self.held is not None and self.rows < SCARCE * self.columns and self.held.rows < self.rows

    def without(self, other: "Moments") -> "Moments":
        """The rows that are not among these, which are less the same means."""
        found = self._like(slice(None))
        found.rows = self.rows - other.rows
        for name in ("x", "y", "xx", "xy"):
            setattr(found, name, getattr(self, name) - getattr(other, name))
        return found

    def error(self, weight: Tensor, shift: Tensor) -> float:
        """mean|y − W·x − shift|² over these rows, less what no weight changes."""
        x, y, xx, xy = self.centred()
        weight = weight.double()
        apart = y - weight @ x - shift.double()
        return float((weight @ xx * weight).sum() - 2 * (weight * xy.T).sum() + apart.square().sum())

    @property
    def finite(self) -> bool:
        """Whether all values were."""
        return all(bool(t.isfinite().all()) for t in (self.xx, self.xy, self.x, self.y, self.from_x, self.from_y))

    def covariance(self) -> Tensor:
        """mean((x − x̄)·(x − x̄)ᵀ): [columns, columns]."""
        return self.centred()[2]

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The means of inputs and outputs, the covariances of inputs with inputs and with outputs."""
        rows = max(1, self.rows)
        x, y = self.x / rows, self.y / rows
        xx, xy = self.xx / rows - torch.outer(x, x), self.xy / rows - torch.outer(x, y)
        return x + self.from_x.double(), y + self.from_y.double(), xx, xy


Fitted = tuple[Float[Tensor, "outputs columns"], Float[Tensor, " outputs"]]
"""A weight, and the shift of its outputs."""


@runtime_checkable
class Repair(Protocol):
    """An entry of ``REPAIRS``: a frozen dataclass whose fields are its options."""

    def __call__(self, moments: Moments, weight: Float[Tensor, "outputs columns"], *, shifted: bool) -> Fitted:
        """The weight and the shift that come nearer to the wanted outputs.

        Args:
            moments: of the inputs that are left, and the wanted outputs.
            weight: the present one.
            shifted: whether the outputs have an offset of their own; otherwise the shift is 0.
        """
        ...


@dataclass(frozen=True)
class Ridge:
    """Least squares, drawn towards the present weight; more so where few rows would be learned by heart.

    With fewer than ``SCARCE`` rows for each column, stronger draws are tried on batches that are held out.

    Args:
        strength: of the draw, as a share of the mean variance of the inputs.

    >>> moments, x = Moments(2, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> moments.add(x, x @ torch.tensor([[3.0], [-1.0]]) + 5)
    >>> found, shift = Ridge(1e-12)(moments, torch.zeros(1, 2), shifted=True)
    >>> found.round(decimals=3).tolist(), round(float(shift), 3)
    ([[3.0, -1.0]], 5.0)
    """

    strength: float = 1e-3

    def __call__(self, moments: Moments, weight: Float[Tensor, "outputs columns"], *, shifted: bool) -> Fitted:
        """The fit."""
        strength = self._best(moments, weight, shifted) if moments.scarce else self.strength
        fitted, shift = _drawn(moments, weight, shifted, strength)
        return fitted.to(weight.dtype), shift.to(weight.dtype)

    def _best(self, moments: Moments, weight: Tensor, shifted: bool) -> float:
        """The strength with the least error on what is held out."""
        held = moments.held
        assert held is not None
        rest = moments.without(held)
        tried = [self.strength, *(s for s in STRENGTHS if s > self.strength)]
        return min(tried, key=lambda strength: held.error(*_drawn(rest, weight, shifted, strength)))


def _drawn(moments: Moments, weight: Tensor, shifted: bool, strength: float) -> tuple[Tensor, Tensor]:
    """Weight and shift of a ridge, in float64."""
    x, y, xx, xy = moments.centred()
    if not shifted:
        xx, xy = xx + torch.outer(x, x), xy + torch.outer(x, y)
    pull = strength * xx.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    xx.diagonal().add_(pull)
    fitted = torch.linalg.solve(xx, xy + pull * weight.double().T).T
    return fitted, y - fitted @ x if shifted else torch.zeros_like(y)


@dataclass(frozen=True)
class Shift:
    """The weight as it is; only the means of the outputs are made right."""

    def __call__(self, moments: Moments, weight: Float[Tensor, "outputs columns"], *, shifted: bool) -> Fitted:
        """The shift."""
        x, y, _, _ = moments.centred()
        shift = y - weight.double() @ x if shifted else torch.zeros_like(y)
        return weight, shift.to(weight.dtype)


REPAIRS: dict[str, type[Repair]] = {"ridge": Ridge, "shift": Shift}
"""Repairs by name."""
