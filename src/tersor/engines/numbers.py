"""The audit by numbers: whether an engine's output is closer to the simulation or to the float network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.engines.base import Runner
from tersor.network.network import Network, op_name


@dataclass(frozen=True)
class NumbersCheck:
    """The distances of the engine's output from the simulation and from the float network.

    Both are relative root-mean-square distances. An engine that computes in integers as planned is closer to the
    simulation.
    """

    to_simulation: float
    to_float: float

    @property
    def integer(self) -> bool:
        """Whether the engine's output is closer to the simulation than to the float network."""
        return self.to_simulation <= self.to_float


def check_numbers(
    runner: Runner, simulation: Network, original: Network, inputs: tuple[Any, ...]
) -> NumbersCheck:
    """Compare the engine's output on one batch with the outputs of the simulation and the float network.

    An engine with one run-time scale per tensor may use one scale for each thread's share of the batch; then only the
    first sample is compared.
    """
    if simulation.dynamic_batch and any(op_name(n) == "quantize_whole" for n in simulation.operators()):
        inputs = tuple(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in inputs)
    ours, simulated, exact = (_flat(f(*inputs)) for f in (runner, simulation, original))
    norm = exact.norm().clamp_min(1e-12)
    return NumbersCheck(float((ours - simulated).norm() / norm), float((ours - exact).norm() / norm))


def _flat(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in parts_of(outputs) if p.is_floating_point()])


def parts_of(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a runner as a tuple, even for a single tensor."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
