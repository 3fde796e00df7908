"""Bias absorption: move the part of a bias that a ReLU never clips into the next layer."""

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
    """Move the part of a channel that a ReLU never clips into the biases of the next layers.

    Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.1.3: with c such that x ≥ c > 0,
    relu(x) = relu(x − c) + c, so c is subtracted from this layer's bias, and W·c added to the next one's; the
    activation's range shrinks by c. The paper takes c = β − 3γ from BatchNorm, which changes the function where x < c.
    Here c is the smallest **observed** value: on the observed data the function is unchanged, on other data it changes
    where a channel falls below that value. A ReLU6 becomes
    ``minimum(relu(x − c), 6 − c)``. Nothing is absorbed through zero padding, where the next layer reads 0
    and not c, or if one of the layers has no bias.

    Args:
        least: channels whose smallest value is below this fraction of their largest are skipped.

    >>> from tersor.network.capture import capture
    >>> from tersor.observers import observe
    >>> pair = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1)).eval()
    >>> for layer in (pair[0], pair[2]):
    ...     _ = layer.weight.data.fill_(2.0), layer.bias.data.fill_(10.0)
    >>> network = capture(pair, (torch.ones(1, 1),))
    >>> outputs = observe(None, torch.tensor([[8.0], [12.0]]))  # of the first layer, for inputs of −1 and 1
    >>> network = AbsorbBias()(network, {network.operators()[0].name: outputs})
    >>> network.tensor("0.bias").item(), network.tensor("2.bias").item()
    (2.0, 26.0)
    """

    least: float = 0.05
    idempotent: ClassVar[bool] = False

    def __call__(self, network: Network, statistics: Mapping[str, Statistics] | None = None) -> Network:
        """The network with its biases moved; ``statistics`` are those of the layers' outputs, by graph name."""
        network = network.edit()
        for space in spaces(network):
            constant = self._constant(space, statistics or {})
            if constant is not None and bool((constant > 0).any()):
                _absorb(network, space, constant)
        return finish(network)

    def _constant(self, space: Space, statistics: Mapping[str, Statistics]) -> Tensor | None:
        """c of each channel, float64, or None if the space is not one layer, a ReLU and its readers."""
        if len(space.producers) != 1 or not all(_keeps_constants(n) for n in space.consumers):
            return None
        layer = space.producers[0]
        activation = next(iter(layer.users))
        clips = op_name(activation) == "relu" or cap_of(activation) is not None
        other_values = [n for n in space.values if n not in (layer, activation) and op_name(n) not in _THROUGH]
        if bias_node(layer) is None or not clips or other_values or len(layer.users) != 1:
            return None
        channels = statistics[layer.name].channels if layer.name in statistics else None
        # Statistics are taken along dimension 1.
        if channels is None or space.axis != 1 or len(channels.min) != space.channels:
            return None
        low, high = channels.min.double(), channels.max.double()
        constant = torch.where(low > self.least * high, low, 0.0)
        return constant.clamp(min=0.0, max=cap_of(activation))


def _keeps_constants(layer: fx.Node) -> bool:
    """Whether a layer maps a constant channel to a constant (no zero padding) and has a bias for it."""
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
