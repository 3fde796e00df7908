"""The error of every layer in dB, local and accumulated through the network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.fx.node import map_arg

from tersor.measure.fidelity import SignalNoise, compare
from tersor.network.network import Network, op_name, walk
from tersor.network.quantize import is_quantizer
from tersor.policy import TRANSPARENT


@dataclass(frozen=True)
class LayerNoise:
    """Signal and noise of one layer's output: ``local`` with exact inputs, ``accumulated`` in the whole network."""

    local: SignalNoise
    accumulated: SignalNoise

    def __add__(self, other: "LayerNoise") -> "LayerNoise":
        return LayerNoise(self.local + other.local, self.accumulated + other.accumulated)


def layer_noise(
    original: Network, quantized: Network, inputs: tuple[Any, ...], names: set[str], chunk: int = 4
) -> dict[str, LayerNoise]:
    """Signal and noise of the operators ``names`` (graph names) over the samples ``inputs``.

    Both networks must compute the same function in float. Memory is bounded by processing ``chunk`` samples at a time.
    """
    total: dict[str, LayerNoise] = {}
    count = next(len(x) for x in inputs if isinstance(x, Tensor) and x.ndim)
    step = chunk if original.dynamic_batch else count
    for start in range(0, count, step):
        samples = tuple(x[start : start + step] if isinstance(x, Tensor) and x.ndim else x for x in inputs)
        for name, noise in _chunk_noise(original, quantized, samples, names).items():
            total[name] = total[name] + noise if name in total else noise
    return total


def _chunk_noise(
    original: Network, quantized: Network, inputs: tuple[Any, ...], names: set[str]
) -> dict[str, LayerNoise]:
    exact: dict[str, Any] = {}
    walk(original, inputs, lambda node, value: exact.__setitem__(node.name, value))
    noise_of: dict[str, LayerNoise] = {}

    def visit(node: fx.Node, value: Any) -> None:
        if node.name in names and isinstance(exact.get(node.name), Tensor):
            local = own_value(node, exact, quantized)
            noise_of[node.name] = LayerNoise(compare(exact[node.name], local), compare(exact[node.name], value))

    walk(quantized, inputs, visit)
    return noise_of


def own_value(node: fx.Node, exact: Mapping[str, Any], quantized: Network) -> Any:
    """The value of a node of the quantized network, with exact inputs and its own quantizers."""

    def value(source: fx.Node) -> Any:
        if source.op == "get_attr":
            return quantized.tensor(source)
        if is_quantizer(source) or source.name not in exact or _moves_codes(source):
            return run(source)
        return exact[source.name]

    def run(target: fx.Node) -> Any:
        return target.target(*map_arg(target.args, value), **map_arg(target.kwargs, value))  # type: ignore[operator]

    return run(node)


def _moves_codes(node: fx.Node) -> bool:
    """Whether the operator only moves quantized values, such as padding between quantizer and layer."""
    sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
    return op_name(node) in TRANSPARENT and len(sources) == 1 and is_quantizer(sources[0])
