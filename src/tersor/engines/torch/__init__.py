"""PyTorch: the simulation of a plan. It supports every format and granularity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.engines.base import Account, Runner
from tersor.engines.options import check_options
from tersor.engines.targets import CPUS, Target, planned_for, target_of
from tersor.words import said

if TYPE_CHECKING:
    import torch

    import tersor.engines.torch.runner
    import tersor.network.network
    import tersor.policy


@dataclass(frozen=True)
class Torch:
    """The network as planned, in float arithmetic, with every rounding that an integer engine would make."""

    name: str = "torch"
    summary: str = said("simulation: every format, no speed-up")
    install: str = "pip install torch"
    libraries: tuple[str, ...] = ("tersor.engines.torch.runner",)
    cheap: bool = False
    simulates: bool = True
    runs_modules: bool = True
    decoder: None = None
    notes: tuple[str, ...] = (said(
        "the engine `torch` simulates: it shows the accuracy of integers, not their speed",
    ),)
    targets: tuple[Target, ...] = CPUS
    unaudited: str = said("the engine reports no operators")
    tolerance: float = 0.0
    plain_note: str = ""

    def version(self) -> str | None:
        """The installed version."""
        import torch

        return torch.__version__

    def policy(self, target: str | None = None) -> "tersor.policy.Policy":
        """A policy that supports everything; quantizers are at the same positions as in the CPU engines."""
        from tersor.numerics.formats import FORMATS
        from tersor.numerics.spec import QuantSpec
        from tersor.policy import (
            ACTIVATIONS,
            ARITHMETIC,
            AVERAGES,
            COMMON,
            LAYERS,
            Allowed,
            AtRunTime,
            Own,
            Policy,
            Row,
        )

        formats, granularities = frozenset(FORMATS), frozenset({"tensor", "channel", "group", "filters", "token"})
        activation = Allowed(QuantSpec("uint8", "tensor", symmetric=False), formats, granularities)
        weight = Allowed(QuantSpec("int8", "channel"), formats, granularities)
        at_run_time = AtRunTime(QuantSpec("int8", "token"), frozenset({"int4", "int8", "int16"}))
        rows = (
            Row("layer", LAYERS, activation, weight),
            Row("arithmetic", ARITHMETIC, activation, output=Own()),
            Row("average", AVERAGES, activation, output=Own()),
            Row("fused", ACTIVATIONS),
            Row("runtime", frozenset({"linear"}), at_run_time, weight),
            Row("stored", LAYERS | {"embedding"}, weight=weight),
            *COMMON,
        )
        policy = Policy(self.name, rows, half_arithmetic=frozenset({"fp16", "bf16"}))
        return planned_for(policy, target_of(self.name, self.targets, target))

    def lower(self, network: "tersor.network.network.Network") -> "tersor.network.network.Network":
        """The network itself."""
        return network

    def compile(
        self, network: "tersor.network.network.Network", *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.torch.runner.TorchRunner":
        """A runner of the network; nothing is lowered."""
        check_options(self, threads, precision)
        from tersor.engines.torch.runner import TorchRunner

        return TorchRunner(network, threads, precision)

    def audit(
        self, network: "tersor.network.network.Network", runner: Runner, inputs: "Sequence[torch.Tensor]" = ()
    ) -> Account:
        """The operators as the runner reports them; their numbers are checked on ``inputs``, if given."""
        from tersor.engines.onestep import account

        return account(self, network, runner, inputs)

    def load(
        self, folder: Path, *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.torch.runner.TorchRunner":
        """A runner for the files written by ``TorchRunner.save``."""
        from tersor.checkpoints import network as checkpoint

        return self.compile(checkpoint.read(folder), threads=threads, precision=precision)

    def plain(self, folder: Path) -> Callable[..., Any]:
        """The network as it is read from the files."""
        return self.load(folder)
