"""The interface of every engine: its policy, a compiled Runner, and an account of what ran. Importing it is cheap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from tersor.engines.targets import Target
from tersor.errors import EngineError
from tersor.packages import EXTRAS, missing
from tersor.process import importing

if TYPE_CHECKING:
    import torch

    import tersor.network.network
    import tersor.policy


@dataclass(frozen=True)
class Executed:
    """One operator of a compiled model, as the engine reports it.

    Args:
        name: the engine's name for it.
        op: the engine's operator type.
        precision: the precision it computes in: int8, fp32, …
        nodes: the graph names of the network's operators that it computes; the first determines its type.
        note: if it fell back to float, the rule that explains why.
    """

    name: str
    op: str
    precision: str
    nodes: tuple[str, ...]
    note: str | None = None


Verdict = Literal["planned", "float", "other", "unchecked"]


@dataclass(frozen=True)
class Checked:
    """One value between an engine's operators, compared with its simulation from the engine's own inputs.

    Args:
        node: the graph name of the operator that computes it.
        name: the operator's readable name.
        ops: the operators that the step covers, the last one first.
        verdict: ``planned``: within the engine's tolerance; ``float``: not rounded, or beyond the tolerance and closer
            to the same operators without quantizers; ``other``: beyond it in any other way; ``unchecked``: no value.
        largest: the largest difference, in codes (of the value's quantizer; of 8 bits over the range of a float value).
        beyond: the share of values that differ by more than the tolerance.
        note: why it was not checked, or which rounding the engine omits.
    """

    node: str
    name: str
    ops: tuple[str, ...]
    verdict: Verdict
    largest: float = 0.0
    beyond: float = 0.0
    note: str | None = None


@dataclass(frozen=True)
class Account:
    """What a compiled network actually computes.

    Args:
        executed: every operator with its precision, as the engine reports it; empty if it reports none.
        steps: whether its numbers match the simulation, operator by operator; empty if not requested.
    """

    executed: tuple[Executed, ...]
    steps: tuple[Checked, ...] = ()


@runtime_checkable
class Runner(Protocol):
    """A compiled network: tensors in, tensors out."""

    threads: int
    precision: str

    def __call__(self, *inputs: "torch.Tensor") -> "torch.Tensor | tuple[torch.Tensor, ...]":
        """One tensor, or a tuple if the network has several outputs."""
        ...

    def executed(self) -> list[Executed]:
        """Every operator with the precision it ran in; empty if the engine does not report it here."""
        ...

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the deployed files into an existing folder and return their names."""
        ...


@runtime_checkable
class Timed(Protocol):
    """A Runner whose engine has a profile of its operators."""

    def times(self, *inputs: "torch.Tensor") -> dict[str, float]:
        """The median milliseconds of each operator in one call, by its name in ``Executed``.

        The network is compiled once more for it, since a profile costs time.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Where a network runs: a frozen dataclass, and one entry of ``tersor.engines.ENGINES``.

    Its methods import what they need, so the table can be read without any engine installed. A new engine is one file
    with such a class and one entry: nothing else names it.
    """

    @property
    def name(self) -> str:
        """The name used by ``--engine``, reports and saved folders."""
        ...

    @property
    def summary(self) -> str:
        """A description in one line of ``tersor engines``."""
        ...

    @property
    def install(self) -> str:
        """The command that installs what it needs."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Modules that are imported before memory is measured, so that they are not attributed to the network."""
        ...

    @property
    def cheap(self) -> bool:
        """Whether it runs networks here and compiles them quickly: ``auto`` tries only such engines."""
        ...

    @property
    def simulates(self) -> bool:
        """Whether it only simulates integer arithmetic, in float: every format, and no speed-up."""
        ...

    @property
    def runs_modules(self) -> bool:
        """Whether it is PyTorch itself, in which a language model keeps the class that its folder names."""
        ...

    @property
    def decoder(self) -> Callable[..., Any] | None:
        """Builds a decoder of a causal language model, or None.

        It is called with a model of ``transformers`` (for its architecture; its parameters may be on the meta device),
        its weights by name (Tensor or QTensor), ``threads`` and ``precision``, and returns an object with
        ``generate(input_ids, max_new_tokens, eos_token_id)``.
        """
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes in every report on a network in this engine."""
        ...

    @property
    def unaudited(self) -> str:
        """The note of a layer in the report when the engine does not report what it executed."""
        ...

    @property
    def tolerance(self) -> float:
        """The number of codes by which an operator may differ from its simulation, from the same inputs."""
        ...

    @property
    def plain_note(self) -> str:
        """Why the files alone may compute other numbers with the runtime's defaults; empty if nothing is known."""
        ...

    def version(self) -> str | None:
        """The installed version; None if one of its requirements is missing."""
        ...

    @property
    def targets(self) -> tuple[Target, ...]:
        """The supported target hardware; empty if its plans do not depend on the hardware."""
        ...

    def policy(self, target: str | None = None) -> "tersor.policy.Policy":
        """The engine's capabilities on a target, as data.

        Args:
            target: the name of one of ``targets``; None: this machine.

        Raises:
            EngineError: an unknown target.
        """
        ...

    def lower(self, network: "tersor.network.network.Network") -> Any:
        """The network in the engine's own form, before it is compiled."""
        ...

    def compile(
        self, network: "tersor.network.network.Network", *, threads: int | None = None, precision: str = "f32"
    ) -> Runner:
        """Lower and compile.

        Raises:
            EngineError: the engine is not installed, or rejects the network or the precision.
        """
        ...

    def audit(
        self, network: "tersor.network.network.Network", runner: Runner, inputs: "Sequence[torch.Tensor]" = ()
    ) -> Account:
        """The precision in which ``runner``, compiled from ``network``, computes its operators.

        Args:
            inputs: one batch, on which the numbers of every operator are checked too; without it, they are not.
        """
        ...

    def load(self, folder: Path, *, threads: int | None = None, precision: str = "f32") -> Runner:
        """Compile the files written by ``Runner.save``.

        Raises:
            EngineError: the engine is not installed, or cannot read the files.
        """
        ...

    def plain(self, folder: Path) -> Callable[..., Any] | None:
        """The files written by ``Runner.save`` in the runtime with its own defaults; None if it is not available here.

        It takes tensors and returns one or several tensors, in the order of the network's outputs.

        Raises:
            EngineError: the runtime cannot open the files.
        """
        ...


def require(engine: Engine) -> None:
    """Raise EngineError, with what is missing and the install command, if the engine is not installed."""
    with importing():
        version = engine.version()
    if version is None:
        extra = next((name for name in EXTRAS if f"tersor[{name}]" in engine.install), None)
        names = missing(EXTRAS[extra]) if extra else ()
        lacks = f" ({', '.join(names)} missing)" if names else ""
        raise EngineError(f"the engine {engine.name!r} is not installed{lacks}; run: {engine.install}")
