"""The audit by numbers: whether an engine's output is that of the simulation, or of the float network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.engines.base import Runner
from tersor.network.network import Network, op_name


@dataclass(frozen=True)
class NumbersCheck:
    """How far the engine's output is from the simulation, and from the float network.

    Both are relative root-mean-square distances. An engine that computes in integers as planned is nearer to the
    simulation.
    """

    to_simulation: float
    to_float: float

    @property
    def integer(self) -> bool:
        """Whether the engine's numbers are those of the simulation rather than of the float network."""
        return self.to_simulation <= self.to_float


def check_numbers(
    runner: Runner, simulation: Network, original: Network, inputs: tuple[Any, ...]
) -> NumbersCheck:
    """Compare the engine's output on one batch with those of the simulation and the float network.

    An engine that takes one scale of a whole tensor at run time may take one for each thread's share of the batch; then
    the first sample alone is compared.
    """
    if simulation.dynamic_batch and any(op_name(n) == "quantize_whole" for n in simulation.operators()):
        inputs = tuple(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in inputs)
    ours, simulated, exact = (_flat(f(*inputs)) for f in (runner, simulation, original))
    norm = exact.norm().clamp_min(1e-12)
    return NumbersCheck(float((ours - simulated).norm() / norm), float((ours - exact).norm() / norm))


def _flat(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    parts = (outputs,) if isinstance(outputs, Tensor) else outputs
    return torch.cat([p.detach().double().reshape(-1) for p in parts if p.is_floating_point()])
