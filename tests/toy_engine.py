"""An engine that no file of Tersor names: tests put it into the table."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from parts import draw, task_of
from torch import Tensor, nn

import tersor
from tersor.engines import ENGINES
from tersor.engines.base import Account, Executed
from tersor.engines.onestep import account
from tersor.engines.targets import CPUS, Target
from tersor.engines.torch.runner import TorchRunner
from tersor.network.network import Network
from tersor.policy import Policy


class Silent(TorchRunner):
    """Computes as the simulation, and reports nothing."""

    def executed(self) -> list[Executed]:
        return []


class Parrot:
    """A decoder that always answers the same."""

    def generate(self, input_ids: Tensor, max_new_tokens: int, eos_token_id: int | None = None) -> Tensor:
        return torch.cat([input_ids, torch.full((len(input_ids), max_new_tokens), 7)], 1)


@dataclass(frozen=True)
class Toy:
    """The simulation under another name, with the rules of a CPU engine."""

    name: str = "toy"
    summary: str = "an engine for this test"
    install: str = "pip install toy"
    libraries: tuple[str, ...] = ("json",)
    cheap: bool = True
    simulates: bool = False
    runs_modules: bool = False
    notes: tuple[str, ...] = ("a toy ran this",)
    unaudited: str = "a toy says nothing"
    tolerance: float = 0.0
    plain_note: str = ""
    targets: tuple[Target, ...] = CPUS

    def version(self) -> str | None:
        return "0.0"

    def policy(self, target: str | None = None) -> Policy:
        return replace(ENGINES["openvino"].policy(target), engine=self.name)

    def lower(self, network):
        return network

    def compile(self, network, *, threads=None, precision="f32"):
        return Silent(network, threads, precision)

    def audit(self, network, runner, inputs=()) -> Account:
        return account(self, network, runner, inputs)

    def load(self, folder: Path, *, threads=None, precision="f32"):
        return Silent(ENGINES["torch"].load(folder).network, threads, precision)

    def plain(self, folder: Path):
        return self.load(folder)

    def decoder(self, model: Any, weights: Any, threads: int | None = None, precision: str = "f32") -> Parrot:
        return Parrot()


class Residual(nn.Module):
    """A residual sum behind a convolution; both are float in the output's head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.a(x).relu()
        return self.c((self.b(x) + x).relu().mean((2, 3)))


@cache
def residual() -> tuple[Network, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    task = task_of(Residual().eval(), (3, 8, 8))
    done = tersor.compress(task, engine="torch", report=False, progress=False)
    return done.network, draw(((3, 8, 8),), 6, 9)
