"""How the share of zeros grows while a network trains."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Growth(Protocol):
    """An entry of GROWTH: a frozen dataclass whose fields are its options."""

    def __call__(self, progress: float) -> float:
        """The share of the final zeros, 0 … 1 and not falling, when this share of the course is done; 1 at its end."""
        ...


@dataclass(frozen=True)
class Cubic:
    """``1 − (1 − t)³``: fast at first, slow where each weight counts (Zhu and Gupta, arXiv 1710.01878).

    >>> [Cubic()(t) for t in (0.0, 0.5, 1.0)]
    [0.0, 0.875, 1.0]
    """

    def __call__(self, progress: float) -> float:
        """The share of the final zeros."""
        return 1 - (1 - progress) ** 3


@dataclass(frozen=True)
class Linear:
    """``t``.

    >>> Linear()(0.25)
    0.25
    """

    def __call__(self, progress: float) -> float:
        """The share of the final zeros."""
        return progress


@dataclass(frozen=True)
class Once:
    """All zeros at the start: with ``regrow`` they move as in RigL (arXiv 1911.11134), without it they stay.

    >>> Once()(0.0)
    1.0
    """

    def __call__(self, progress: float) -> float:
        """The share of the final zeros."""
        return 1.0


GROWTH: dict[str, type[Growth]] = {"cubic": Cubic, "linear": Linear, "once": Once}
"""All of them by name."""
