"""The simulation: the network as Tersor planned it, run by PyTorch. Every format and granularity works here."""

from pathlib import Path

import torch
from torch import Tensor

from tersor.checkpoints import network as checkpoint
from tersor.engines.base import Executed
from tersor.network.network import Network, op_name
from tersor.network.quantize import is_quantizer
from tersor.numerics.formats import FORMATS
from tersor.numerics.spec import Granularity, QuantSpec
from tersor.policy import Policy

NAME = "torch"
FILES = checkpoint.FILES


def version() -> str:
    """The installed version."""
    return torch.__version__


def policy() -> Policy:
    """Everything is simulated; quantizers stand where the CPU engines have them."""
    everything = frozenset(FORMATS)
    return Policy(
        engine=NAME,
        activation=QuantSpec("uint8", Granularity.tensor(), symmetric=False),
        weight=QuantSpec("int8", Granularity.channel(0), symmetric=True),
        activation_formats=everything,
        weight_formats=everything,
        granularities=frozenset({"tensor", "channel", "group", "filters", "token"}),
        half_arithmetic=frozenset({"fp16", "bf16"}),
        stores_embeddings=True,
        runtime_formats=frozenset({"int4", "int8", "int16"}),
    )


class TorchRunner:
    """The quantized graph in float arithmetic, with every rounding that an integer engine would make."""

    def __init__(self, network: Network, threads: int | None = None, precision: str = "f32") -> None:
        self.network = network
        self.threads = threads or torch.get_num_threads()
        self.precision = precision

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One tensor, or a tuple of them where there are several outputs."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return self.network(*inputs)
        finally:
            torch.set_num_threads(before)

    def executed(self) -> list[Executed]:
        """Every operator; a simulation computes in FP32 all that is not kept in half precision, and says so."""
        note = "a simulation: integers are rounded to, the arithmetic is float"
        operators = [n for n in self.network.operators() if not is_quantizer(n)]
        return [Executed(n.name, op_name(n), n.meta.get("half", "fp32"), (n.name,), note) for n in operators]

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the graph as JSON and the tensors as safetensors."""
        return checkpoint.write(self.network, folder)


def compile(network: Network, *, threads: int | None = None, precision: str = "f32") -> TorchRunner:
    """A runner of the network; nothing is lowered."""
    return TorchRunner(network, threads, precision)


def load(folder: Path, *, threads: int | None = None, precision: str = "f32") -> TorchRunner:
    """A runner of what ``TorchRunner.save`` wrote."""
    return TorchRunner(checkpoint.read(folder), threads, precision)
