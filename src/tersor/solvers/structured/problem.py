"""One group whose atoms compete: what writes them, what reads them, and what is known of their values."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from tersor.errors import RecipeError


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the group as columns of its weight.

    Args:
        weight: ``[outputs, columns]``.
        columns: those of each atom.
        gram: the covariance of its inputs, mean((x − x̄)·(x − x̄)ᵀ); None if no data was run.
        rows: how much the network's output depends on each output: a squared gradient; None: the same for all.
    """

    weight: Float[Tensor, "outputs columns"]
    columns: Int[Tensor, "atoms each"]
    gram: Float[Tensor, "columns columns"] | None = None
    rows: Float[Tensor, " outputs"] | None = None


@dataclass(frozen=True, eq=False)
class GroupProblem:
    """A group of atoms, of which some shall go.

    Args:
        name: for errors.
        written: the weights and biases that write each atom: ``[atoms, values]`` for each tensor.
        scales: what a BatchNorm multiplies each atom by: ``[atoms, values]``.
        readers: the layers that read it.
        squares: the mean over samples of the squared gradient of the loss by ``written``, in the same order.
        changes: Σ gradient·weight over all that writes an atom, for each draw of the loss, so scaled that the sum of
            squares is a mean over samples: ``[draws, atoms]``.
        zeros: the share of zeros among the values of each atom.
        seed: of what is drawn.
    """

    name: str
    written: tuple[Float[Tensor, "atoms _"], ...]
    scales: Float[Tensor, "atoms normed"] | None = None
    readers: tuple[Reader, ...] = ()
    squares: tuple[Tensor, ...] = field(default=())
    changes: Float[Tensor, "draws atoms"] | None = None
    zeros: Float[Tensor, " atoms"] | None = None
    seed: int = 0

    @property
    def count(self) -> int:
        """The number of atoms."""
        return len(self.written[0]) if self.written else len(self.readers[0].columns)

    def require(self, what: str, found: Any) -> Any:
        """``found``, if it is there.

        Raises:
            RecipeError: naming the group and what it lacks.
        """
        if found is None or (isinstance(found, tuple) and not found):
            raise RecipeError(f"the channels of {self.name} have no {what}; take another score, such as magnitude")
        return found


@dataclass(frozen=True, eq=False)
class Ranking:
    """In which order the atoms of a group go, and what their loss costs.

    Args:
        order: numbers of atoms, those that go first in front.
        loss: what it costs that the first k + 1 went, for each k; it does not fall.
    """

    order: Int[Tensor, " atoms"]
    loss: Float[Tensor, " atoms"]

    @classmethod
    def of(cls, scores: Float[Tensor, " atoms"]) -> "Ranking":
        """From independent scores that are not negative: the smallest goes first.

        >>> import torch
        >>> Ranking.of(torch.tensor([3.0, 1.0, 2.0])).loss.tolist()
        [1.0, 3.0, 6.0]
        """
        order = scores.argsort(stable=True)
        return cls(order, scores[order].cumsum(0))


@runtime_checkable
class Score(Protocol):
    """An entry of ``SCORES``: a frozen dataclass whose fields are its options."""

    needs: ClassVar[frozenset[str]]
    """What it reads besides the weights: ``inputs``, ``gradients``, ``outputs``."""
    comparable: ClassVar[bool]
    """Whether losses of different groups can be compared, so that the amounts may differ."""

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The order in which the atoms go."""
        ...
