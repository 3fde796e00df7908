"""Bias absorption: what a ReLU never clips moves on into the next layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.network.network import (
    LINEARS,
    Network,
    argument,
    bias_node,
    finish,
    op_name,
    set_tensor,
    weight_node,
)
from tersor.network.rewrites.rescale import by_weight, cap_channels
from tersor.network.rewrites.spaces import Space, cap_of, spaces
from tersor.observers import Statistics

_THROUGH = {"dropout", "feature_dropout"}


@dataclass(frozen=True)
class AbsorbBias:
    """Move the part of a channel that a ReLU always lets through into the biases of the layers behind it.

    Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.1.3: with c such that x ≥ c > 0,
    relu(x) = relu(x − c) + c, so c leaves this layer's bias, and W·c joins the next one's; the activation's
    range shrinks by c. The paper takes c = β − 3γ from BatchNorm, which changes the function where x < c.
    Here c is the smallest value that was **observed**: on the observed data the function stays what it was,
    and on other data it changes where a channel falls below everything seen. A ReLU6 becomes
    ``minimum(relu(x − c), 6 − c)``. Nothing is absorbed through zero padding, where the next layer reads 0
    and not c, and none without a bias to take it from and one to put it into.

    Args:
        least: a channel whose smallest value is below this part of its largest is left alone.

    >>> from tersor.network.capture import capture
    >>> from tersor.observers import observe
    >>> pair = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1)).eval()
    >>> for layer in (pair[0], pair[2]):
    ...     _ = layer.weight.data.fill_(2.0), layer.bias.data.fill_(10.0)
    >>> network = capture(pair, (torch.ones(1, 1),))
    >>> seen = observe(None, torch.tensor([[8.0], [12.0]]))  # what the first layer said to −1 and 1
    >>> network = AbsorbBias()(network, {network.operators()[0].name: seen})
    >>> network.tensor("0.bias").item(), network.tensor("2.bias").item()
    (2.0, 26.0)
    """

    least: float = 0.05
    idempotent: ClassVar[bool] = False

    def __call__(self, network: Network, statistics: Mapping[str, Statistics] | None = None) -> Network:
        """The network with its biases moved; ``statistics`` are of the layers' outputs, by graph name."""
        network = network.edit()
        for space in spaces(network):
            constant = self._constant(space, statistics or {})
            if constant is not None and bool((constant > 0).any()):
                _absorb(network, space, constant)
        return finish(network)

    def _constant(self, space: Space, statistics: Mapping[str, Statistics]) -> Tensor | None:
        """c of each channel, float64; None where the space is no plain layer, ReLU, layers."""
        if len(space.producers) != 1 or not all(_reads_constant(n) for n in space.consumers):
            return None
        layer = space.producers[0]
        activation = next(iter(layer.users))
        clips = op_name(activation) == "relu" or cap_of(activation) is not None
        others = [n for n in space.values if n not in (layer, activation) and op_name(n) not in _THROUGH]
        if bias_node(layer) is None or not clips or others or len(layer.users) != 1:
            return None
        seen = statistics[layer.name].channels if layer.name in statistics else None
        # Statistics are taken along dimension 1.
        if seen is None or space.axis != 1 or len(seen.min) != space.channels:
            return None
        low, high = seen.min.double(), seen.max.double()
        constant = torch.where(low > self.least * high, low, 0.0)
        return constant.clamp(min=0.0, max=cap_of(activation))


def _reads_constant(layer: fx.Node) -> bool:
    """Whether a layer turns a constant channel into a constant: it has a bias for it and pads no zeros."""
    if layer.target not in LINEARS:
        padding = argument(layer, 4, "padding", 0)
        if padding != "valid" and any(padding if isinstance(padding, list | tuple) else [padding]):
            return False
    return bias_node(layer) is not None


def _absorb(network: Network, space: Space, constant: Tensor) -> None:
    layer = space.producers[0]
    _add_to_bias(network, layer, -constant)
    for reader in space.consumers:
        node = weight_node(reader)
        assert node is not None
        weight = network.tensor(node).double()
        sums = weight.reshape(*weight.shape[:2], -1).sum(2)
        _add_to_bias(network, reader, (sums * by_weight(constant, reader, len(sums))).sum(1))
    for node in space.values:
        if (cap := cap_of(node)) is not None:
            cap_channels(network, node, cap - constant, space.axis)


def _add_to_bias(network: Network, layer: fx.Node, shift: Tensor) -> None:
    node = bias_node(layer)
    assert node is not None
    old = network.tensor(node)
    set_tensor(network, str(node.target), (old.double() + shift).to(old.dtype))
