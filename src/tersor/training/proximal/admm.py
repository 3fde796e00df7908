"""ADMM for quantized weights: the state of one weight, its target, and how they are updated."""

from dataclasses import asdict, astuple, dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from tersor.errors import RecipeError
from tersor.numerics import QTensor, QuantSpec, expand
from tersor.numerics.qtensor import wide
from tersor.tables import Named, made, name_of
from tersor.training.proximal import PROXIMAL, Projection


@dataclass(frozen=True)
class Admm:
    """Training towards a quantized set by the alternating direction method of multipliers.

    After Leng et al., arXiv 1707.09870. The loss f(W) is to be minimized with W in a set C, such as the ternary
    tensors. W and its copy G in C are separated, and λ (the dual, in units of the weight) sums up their differences:

    ```
    W ← the minimum of f(W) + ρ/2·‖W − G + λ‖²      by many steps of the optimizer
    G ← the projection of W + λ on C
    λ ← λ + W − G
    ```

    G starts as the projection of W, λ as 0. If ρ grows, λ shrinks by the same factor, so that ρλ is unchanged (Boyd et
    al. 2011, section 3.4.1). The set is not convex: what is found depends on the start, and nothing guarantees the
    minimum, nor that it is better than projecting once.

    lr·ρ is about the share of the way to G − λ that a step goes. It should start small, and grow over dozens of updates
    until W and G agree: ``over`` gives the growth. Options are in units of it, so that they suit any learning rate.
    With momentum or Adam the pull lags if it goes through the gradient, and with frequent updates λ then swings more
    and more; the proximal pull does not.

    Here f(W) = ½(W − c)ᵀH(W − c), where H couples the weights. The nearest ternary point to c = (1, 0.4) is (1, 0), the
    best one (0.64, 0):

    >>> c, h = torch.tensor([[1.0, 0.4]]), torch.tensor([[1.0, -0.9], [-0.9, 1.0]])
    >>> def loss(w): return float((w - c) @ h @ (w - c).T) / 2
    >>> state = AdmmState(c, Admm("ternary", penalty=0.2, growth=1.2))
    >>> print(state.target, round(loss(state.target), 3))
    tensor([[1., 0.]]) 0.08
    >>> for step in range(20):
    ...     ρ, wanted = state.penalty, state.target - state.dual
    ...     w = torch.linalg.solve(h + ρ * torch.eye(2), (c @ h + ρ * wanted).T).T  # the W-step, exact
    ...     residual = state.update(w, step)
    >>> print(state.target, round(loss(state.target), 3), residual.primal < 0.01)
    tensor([[0.6399, 0.0000]]) 0.015 True

    Args:
        set: an entry of PROXIMAL that is a projection, alone or with its options.
        penalty: lr·ρ at the start, for the learning rate at which the optimizer starts.
        growth: factor of ρ at each update of G and λ.
        most: the largest lr·ρ, for the same learning rate.
        pull: how a step takes the penalty. ``proximal``: its proximal operator follows the optimizer's step, W ← (W +
            lr·ρ(G − λ)) / (1 + lr·ρ), which is stable for any ρ. ``gradient``: ρ(W − G + λ) is added to the gradient,
            as in the paper; with SGD lr·ρ must stay well below 2.
        every: steps of the optimizer from one update of G and λ to the next; 0 is only when ``dual_step`` is called, as
            at the end of an epoch. Each update is kept in the history of residuals.
    """

    set: Named = "ternary"
    penalty: Annotated[float, Gt(0)] = 0.03
    growth: Annotated[float, Ge(1)] = 1.2
    most: Annotated[float, Gt(0)] = 10.0
    pull: Literal["proximal", "gradient"] = "proximal"
    every: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        if not isinstance(made(PROXIMAL, self.set, "set"), Projection):
            sets = ", ".join(name for name, entry in PROXIMAL.items() if isinstance(entry, Projection))
            raise RecipeError(f"{name_of(self.set)} is no quantized set for ADMM: use one of {sets}")

    @property
    def projection(self) -> Projection:
        """The projection on the set."""
        return made(PROXIMAL, self.set, "set")

    def over(self, updates: int) -> "Admm":
        """The same with a growth by which ρ reaches ``most`` in that many updates of G and λ.

        >>> round(Admm(penalty=0.1, most=10.0).over(20).growth, 3)
        1.259
        """
        return replace(self, growth=max(1.0, (self.most / self.penalty) ** (1 / max(1, updates))))


@dataclass(frozen=True)
class Residual:
    """How far W and G were from each other at an update of G and λ.

    Args:
        step: steps of the optimizer before it.
        penalty: ρ of these steps.
        primal: ‖W − G‖ / ‖W‖: 0 if the weight is in the set.
        dual: ‖G − G before‖ / ‖W‖: 0 if the target no longer changes.
    """

    step: int
    penalty: float
    primal: float
    dual: float


class AdmmState:
    """What ADMM keeps for one weight.

    Args:
        weight: its present value.
        options: the set, and how the penalty grows.
        spec: format, granularity and scale dtype instead of the set's own.
        rate: the learning rate that the penalty is divided by.

    Attributes:
        qtensor, target: G, as codes with a scale and as values in the dtype of the dual.
        dual: λ, in the shape of the weight, in at least float32.
        penalty, most: ρ and its limit.
        history: one Residual for each update.
    """

    def __init__(self, weight: Tensor, options: Admm, spec: QuantSpec | None = None, rate: float = 1.0):
        self.options, self.projection = options, options.projection
        self.dual = torch.zeros_like(wide(weight.detach()))
        self._aim(self.projection.qtensor(weight, spec))
        self.penalty, self.most = options.penalty / rate, options.most / rate
        self.history: list[Residual] = []

    def augmented(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """The gradient with ρ(W − G + λ) added; unchanged if the pull is proximal."""
        if self.options.pull == "proximal":
            return gradient
        return gradient + (self.penalty * (weight - self.target + self.dual)).to(gradient.dtype)

    def pulled(self, weight: Tensor, lr: float) -> Tensor:
        """(W + lr·ρ(G − λ)) / (1 + lr·ρ); the weight itself if the pull is in the gradient."""
        if self.options.pull == "gradient":
            return weight
        return torch.lerp(wide(weight), self.target - self.dual, lr * self.penalty / (1 + lr * self.penalty))

    def update(self, weight: Tensor, step: int) -> Residual:
        """The G-step and the dual step; raises NumericsError for NaN or infinity."""
        weight, before = wide(weight.detach()), self.target
        self._aim(self.projection.qtensor(weight + self.dual, self.qtensor.spec))
        target = self.target
        size = max(float(weight.norm()), torch.finfo(torch.float32).tiny)
        primal, moved = float((weight - target).norm()) / size, float((target - before).norm()) / size
        self.history.append(Residual(step, self.penalty, primal, moved))
        grown = max(self.penalty, min(self.penalty * self.options.growth, self.most))
        self.dual = (self.dual + weight - target) * (self.penalty / grown)
        self.penalty = grown
        return self.history[-1]

    def clear(self, gone: Tensor) -> None:
        """Make G and λ zero where ``gone`` is True."""
        codes, q = self.qtensor.codes, self.qtensor
        zero = expand(q.zero_point, q.shape, q.spec.block).to(codes.dtype)
        self._aim(QTensor(torch.where(gone, zero, codes), q.scale, q.zero_point, q.spec))
        self.dual = self.dual.masked_fill(gone, 0)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers."""
        q = self.qtensor
        return {
            "codes": q.codes, "scale": q.scale, "zero_point": q.zero_point, "dual": self.dual, "penalty": self.penalty,
            "most": self.most, "history": [list(astuple(residual)) for residual in self.history],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take the values of ``state_dict``, on the weight's device; raises NumericsError if they do not fit."""
        codes, scale, zero_point, dual = (
            state[key].to(device, copy=True) for key in ("codes", "scale", "zero_point", "dual")
        )
        self.dual, self.penalty, self.most = dual, float(state["penalty"]), float(state["most"])
        self._aim(QTensor(codes, scale, zero_point, self.qtensor.spec))
        self.history = [Residual(*values) for values in state["history"]]

    def _aim(self, qtensor: QTensor) -> None:
        self.qtensor, self.target = qtensor, qtensor.dequantize().to(self.dual.dtype)

    def __str__(self) -> str:
        return f"{asdict(self.options)} {self.qtensor.spec}"
