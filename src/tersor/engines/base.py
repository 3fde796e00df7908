"""What every engine gives: its policy, a compiled Runner, and an account of what really ran."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tersor.network.network import Network, op_name
from tersor.policy import Policy


@dataclass(frozen=True)
class Executed:
    """One operator of a compiled model, by the engine's own account.

    Args:
        name: the engine's name for it.
        op: the engine's operator type.
        precision: what it computes in: int8, fp32, …
        nodes: the graph names of our operators that it does; the first gave it its type.
        note: where it fell back to float, the rule that says why.
    """

    name: str
    op: str
    precision: str
    nodes: tuple[str, ...]
    note: str | None = None


class Runner(Protocol):
    """A compiled network that takes and gives tensors."""

    threads: int
    precision: str

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One tensor, or a tuple of them where the network has several outputs."""
        ...

    def executed(self) -> list[Executed]:
        """Every operator with the precision that it really computes in."""
        ...

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the deployed files into an existing folder; their names are returned."""
        ...


class Engine(Protocol):
    """Where a network runs."""

    name: str

    def version(self) -> str | None:
        """The installed version, or None where it is not installed."""
        ...

    def policy(self) -> Policy:
        """What it can do, as data."""
        ...

    def compile(self, network: Network, *, threads: int | None = None, precision: str = "f32") -> Runner:
        """Lower and compile; EngineError where the engine refuses."""
        ...

    def load(self, folder: Path, *, threads: int | None = None, precision: str = "f32") -> Runner:
        """Compile what ``Runner.save`` wrote."""
        ...


@dataclass(frozen=True)
class NumbersCheck:
    """The audit by numbers: how far the engine's output is from the simulation, and from the float network.

    Both are relative root-mean-square distances. Where the engine really computes in integers as planned, it
    stands nearer to the simulation.
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
    """Hold the engine's output against the simulation and the float network on one batch.

    Where a scale is taken at run time from all of a tensor, an engine may take one for each thread's share of the
    batch; then the first sample alone is compared.
    """
    if simulation.dynamic_batch and any(op_name(n) == "quantize_whole" for n in simulation.operators()):
        inputs = tuple(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in inputs)
    ours, simulated, exact = (_flat(f(*inputs)) for f in (runner, simulation, original))
    norm = exact.norm().clamp_min(1e-12)
    return NumbersCheck(float((ours - simulated).norm() / norm), float((ours - exact).norm() / norm))


def _flat(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    parts = (outputs,) if isinstance(outputs, Tensor) else outputs
    return torch.cat([p.detach().double().reshape(-1) for p in parts if p.is_floating_point()])
