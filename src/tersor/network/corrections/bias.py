"""Bias correction: restore the mean output that every layer has in float."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from tersor.network.calibrate import channel_axis, channel_sum
from tersor.network.chunks import Chunks, channels_last, cut, walk_together, workers
from tersor.network.network import Network, add_tensor, bias_node, finish


@dataclass(frozen=True)
class CorrectBias:
    """Shift each layer's bias so that the mean of each output channel equals the float network's.

    Layers are corrected in graph order, each with the inputs from the corrected layers before it, in one walk;
    correcting all of them from one pass diverges. Nagel et al., arXiv 1906.04721, section 4.2 (empirical form).

    Args:
        means: the float mean of each layer's output channels over the same samples, by graph name.
    """

    means: Mapping[str, Tensor]

    def __call__(
        self, network: Network, inputs: tuple[Any, ...], on_layer: Callable[[int], None] = lambda n: None
    ) -> Network:
        """The corrected network.

        Args:
            inputs: the samples that ``means`` were computed from, as one batch.
            on_layer: called with 1 after each corrected layer.
        """
        network = network.edit()
        shifts: dict[str, Tensor] = {}

        def visit(node: fx.Node, values: Chunks) -> Chunks | None:
            if node.name not in self.means:
                return None
            sums, counts = zip(*pool.map(lambda v: channel_sum(node, v), values), strict=True)
            shift = (self.means[node.name] - sum(sums) / sum(counts)).to(values[0].dtype)
            shifts[node.name] = shift
            on_layer(1)
            return Chunks(pool.map(lambda v: v.add_(_broadcast(node, shift, v)), values))  # no other node reads v yet

        with workers() as pool:
            walk_together(network, cut(network, inputs), pool, visit, channels_last(network))
        for node in network.operators():
            if node.name in shifts:
                _shift_bias(network, node, shifts[node.name])
        return finish(network)


def _broadcast(node: fx.Node, shift: Tensor, value: Tensor) -> Tensor:
    shape = [1] * value.ndim
    shape[channel_axis(node, value)] = -1
    return shift.reshape(shape)


def _shift_bias(network: Network, node: fx.Node, shift: Tensor) -> None:
    old = bias_node(node)
    value = shift if old is None else network.tensor(old) + shift
    name = str(old.target) if old is not None else f"{node.name}.bias"
    with network.graph.inserting_before(node):
        new = network.graph.get_attr(add_tensor(network, name, value))
    arguments = list(node.args) + [None] * (3 - len(node.args))
    arguments[2] = new
    node.args = tuple(arguments)
    node.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}
