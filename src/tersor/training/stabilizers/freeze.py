"""Weights that oscillate too often are frozen at their mean code."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from tersor.errors import CheckpointError
from tersor.training.stabilizers.base import Stabilizer, deployed, integers, latent, rising, watched
from tersor.training.student import LatentWeight
from tersor.words import said

State = dict[str, Tensor]


@dataclass(frozen=True)
class Freeze:
    """Weights are frozen whose code turns back more often than a threshold, which falls by half a cosine.

    The frequency is a moving average of turns: steps in which the code changed, against the direction of its change
    before. A weight is frozen when it turns, for the rest of the training, at the one of the two codes that is nearer
    to the moving average of its codes; the scale may still move. Nagel et al., arXiv 2203.11086, algorithm 1; there a
    weight may be frozen at any step and code, which after a drift is far from where it is.

    Args:
        first, last: the threshold at the start and at the end, in turns per step.
        rate: of both averages; at most a half or a third of ``last``, or one turn alone freezes a weight.
        bits: the widest formats that it acts on.
    """

    first: Annotated[float, Gt(0), Le(1)] = 0.1
    last: Annotated[float, Gt(0), Le(1)] = 0.01
    rate: Annotated[float, Gt(0), Le(1)] = 0.003
    bits: Annotated[int, Ge(2)] = 4

    def __call__(self, student: nn.Module) -> Stabilizer:
        return Freezing(self, student)

    def threshold(self, progress: float) -> float:
        """The largest frequency of a weight that stays free."""
        return self.first + (self.last - self.first) * rising(progress)


class Freezing(Stabilizer):
    """What is known of each weight: its code in the last step, the direction of its last change, both averages, and
    whether it is frozen."""

    def __init__(self, options: Freeze, student: nn.Module) -> None:
        self.options, self.student = options, student
        self.states: dict[str, State] = {}
        self._weights()

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Watch the codes, and put frozen weights on theirs."""
        for weight in deployed(self._weights()):
            codes, scale, _, _ = integers(weight.quantizer, latent(weight))
            state = self.states.setdefault(weight.name, started(codes))
            self._watch(state, codes, self.options.threshold(progress))
            if bool(state["frozen"].any()):
                put(weight, state["codes"] * scale, state["frozen"])

    def _weights(self) -> list[LatentWeight]:
        return watched(self.student, "freeze", self.options.bits)

    def _watch(self, state: State, codes: Tensor, threshold: float) -> None:
        frozen = state["frozen"]
        before = state["codes"]
        change = (codes - before).sign()
        turned = change * state["direction"] < 0
        state["frequency"].lerp_(turned.float(), self.options.rate)
        state["direction"] = torch.where(change == 0, state["direction"], change)
        new = turned & (state["frequency"] > threshold)
        usual = state["mean"].round().clamp(torch.minimum(before, codes), torch.maximum(before, codes))
        state["codes"] = torch.where(frozen, before, torch.where(new, usual, codes))
        state["mean"].lerp_(codes, self.options.rate)
        state["frozen"] = frozen | new

    def state_dict(self) -> dict[str, Tensor]:
        """What is known, by the names of the parameter and of the quantity."""
        return {f"{name}.{key}": value for name, state in self.states.items() for key, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take copies of the values."""
        self.states, weights = {}, {weight.name: weight.parameter for weight in self._weights()}
        for key, value in state.items():
            name, _, quantity = key.rpartition(".")
            if name not in weights or weights[name].shape != value.shape:
                wanted = f"has {tuple(weights[name].shape)}" if name in weights else "is not watched"
                raise CheckpointError(
                    f"the state {key} has shape {tuple(value.shape)}, but the weight {wanted}: resume with the "
                    "same recipe"
                )
            self.states.setdefault(name, {})[quantity] = value.to(weights[name].device, copy=True)

    def note(self) -> str:
        """How many weights are frozen."""
        frozen = sum(int(state["frozen"].sum()) for state in self.states.values())
        total = sum(weight.parameter.numel() for weight in self._weights())
        return said("{frozen} of {total} weights oscillated and were frozen", frozen=frozen, total=total)


def started(codes: Tensor) -> State:
    """The state of a weight that has not changed yet."""
    zeros = torch.zeros_like(codes)
    frozen = zeros.bool()
    return {"codes": codes, "direction": zeros, "frequency": zeros.clone(), "mean": codes.clone(), "frozen": frozen}


def put(weight: LatentWeight, values: Tensor, where: Tensor) -> None:
    """Set the parameter so that its quantizer reads ``values`` there; a factor of 0 leaves it as it is."""
    if weight.factor is not None:
        factor = weight.factor.expand_as(values)
        where = where & (factor != 0)
        values = values / torch.where(factor == 0, 1.0, factor)
    weight.parameter.copy_(torch.where(where, values.to(weight.parameter.dtype), weight.parameter))
