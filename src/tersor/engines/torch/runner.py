"""The simulation: the network as Tersor planned it, run by PyTorch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.checkpoints import network as checkpoint
from tersor.engines.base import Executed
from tersor.engines.inputs import of_network, taken
from tersor.engines.options import threads_of
from tersor.network.network import Network, op_name
from tersor.network.quantize import is_quantizer
from tersor.words import said

FILES = checkpoint.FILES


class TorchRunner:
    """The quantized graph in float arithmetic, with every rounding that an integer engine would make."""

    def __init__(self, network: Network, threads: int | None = None, precision: str = "f32") -> None:
        self.network = network
        self.threads = threads_of(threads)
        self.precision = precision
        self._inputs = of_network(network)

    def __call__(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        """One tensor, or a tuple if there are several outputs.

        Raises:
            EngineError: an input has a shape or dtype that the network does not accept.
        """
        tensors = taken(inputs, self._inputs)
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.autocast("cpu", enabled=False):  # the caller's would compute in another precision than stated
                return self.network(*tensors)
        except Exception:
            taken(inputs, self._inputs)
            raise
        finally:
            torch.set_num_threads(before)

    def executed(self) -> list[Executed]:
        """Every operator; the simulation computes everything in FP32 that is not kept in half precision."""
        note = said("a simulation: integers are rounded to, the arithmetic is float")
        operators = [n for n in self.network.operators() if not is_quantizer(n)]
        return [Executed(n.name, op_name(n), n.meta.get("half", "fp32"), (n.name,), note) for n in operators]

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the graph as JSON and the tensors as safetensors."""
        return checkpoint.write(self.network, folder)
