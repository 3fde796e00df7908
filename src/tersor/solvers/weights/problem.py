"""What a score of single weights is given, and what it returns."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from tersor.errors import CalibrationError, RecipeError
from tersor.solvers.fisher import blocks_of


@dataclass(frozen=True, eq=False)
class WeightProblem:
    """One weight, and what a score may read of its layer.

    Args:
        name: for errors.
        weight: of any shape, float.
        slopes: the mean gradient of the loss, in the weight's shape.
        squares: the mean of squared gradients: the diagonal of the Fisher matrix.
        blocks: [blocks, size, size] of the Fisher matrix, as ``tersor.solvers.fisher.blocks_of`` cuts the weight.
        norms: the root mean square of the input that each weight is multiplied by, broadcastable to the weight.
        seed: of what is drawn.
    """

    name: str
    weight: Tensor
    slopes: Tensor | None = None
    squares: Tensor | None = None
    blocks: Tensor | None = None
    norms: Tensor | None = None
    seed: int = 0

    def given(self, what: str) -> Any:
        """The field of that name; raises RecipeError if it is missing, which names the layer."""
        found = getattr(self, what)
        if found is None:
            raise RecipeError(f"{self.name}: its {what} are not known here, which the score needs: take another score")
        return found


@runtime_checkable
class WeightScore(Protocol):
    """A frozen dataclass of options that rates every weight of a layer.

    ``needs``: fields of WeightProblem beside ``weight``. ``comparable``: whether losses of different layers are in one
    unit, so that one threshold may choose among all; otherwise each layer loses the same share.
    """

    needs: ClassVar[frozenset[str]]
    comparable: ClassVar[bool]

    def __call__(self, problem: WeightProblem) -> Tensor:
        """What the loss rises by if a weight goes, not negative, in the weight's shape; the smallest go first."""
        ...

    def updated(self, problem: WeightProblem, keep: Tensor) -> Tensor:
        """The weight with zeros where ``keep`` is False, the others as the score makes up for it."""
        ...


class Plain:
    """Shared by scores that leave the other weights as they are."""

    def updated(self, problem: WeightProblem, keep: Tensor) -> Tensor:
        """The weight with zeros where ``keep`` is False."""
        return problem.weight.masked_fill(~keep, 0.0)


@dataclass
class Curvature:
    """Sums over gradients, from which ``slopes``, ``squares`` and ``blocks`` of a WeightProblem are means.

    Args:
        needs: those of the score.
        size: of the blocks.

    >>> found = Curvature(frozenset({"squares"}))
    >>> found.add("fc", torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]))
    >>> found.of("fc")["squares"].tolist()
    [[5.0, 2.0]]
    """

    needs: Collection[str]
    size: int = 1
    sums: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, gradients: Tensor) -> None:
        """Add gradients of one weight: [samples, *weight]."""
        found, flat = self.sums.setdefault(name, {}), gradients.detach().flatten(1).float()
        news = {}
        if "slopes" in self.needs:
            news["slopes"] = flat.sum(0).reshape(gradients.shape[1:])
        if "squares" in self.needs:
            news["squares"] = flat.square().sum(0).reshape(gradients.shape[1:])
        if "blocks" in self.needs:
            parts = blocks_of(flat, self.size)
            news["blocks"] = parts.transpose(1, 2) @ parts
        for key, value in news.items():
            found[key] = found[key].add_(value) if key in found else value
        self.counts[name] = self.counts.get(name, 0.0) + len(gradients)

    def of(self, name: str) -> Mapping[str, Tensor]:
        """The means of one weight.

        Raises:
            CalibrationError: they are NaN or infinite.
        """
        count = self.counts.get(name, 0.0)
        found = {key: value / count for key, value in self.sums.get(name, {}).items()} if count else {}
        if not all(bool(torch.isfinite(value).all()) for value in found.values()):
            raise CalibrationError(f"{name}: gradients of the loss are NaN or infinite: look for bad samples")
        return found

    def fade(self, factor: float = 0.5) -> None:
        """Let what was added so far count less than what comes."""
        for name, sums in self.sums.items():
            self.counts[name] *= factor
            for value in sums.values():
                value.mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        """The sums, to be saved."""
        return {"sums": {name: dict(sums) for name, sums in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take saved sums."""
        self.counts = dict(state["counts"])
        self.sums = {n: {k: v.to(device) for k, v in sums.items()} for n, sums in state["sums"].items()}
