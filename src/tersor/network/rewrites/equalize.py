"""Cross-layer equalization: the channels of a tensor made equally large, and the function left as it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.network.network import Network, finish, groups_of, weight_node
from tersor.network.rewrites.rescale import bounded, by_weight, rescale
from tersor.network.rewrites.spaces import Space, spaces
from tersor.observers import Statistics


@dataclass(frozen=True)
class Equalize:
    """Scale channels between layers so that one scale for a whole tensor suits all of its channels.

    Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.1: output channel i of a layer is
    divided by sᵢ, and input channel i of its reader multiplied by it, with sᵢ = √(r¹ᵢ/r²ᵢ) from the two
    ranges; repeated over the network until nothing moves. Here, beyond the paper:

    - Several producers and consumers may share their channels (``spaces``): residual streams are scaled too.
      A channel's range is then the largest that it has in any of them, each as a part of its own maximum:
      that one decides how few codes the channel is left with.
    - With ``statistics`` (of the network's nodes, by graph name; layers and residual adds are looked at),
      the activation counts as one more producer: weights alone would be made even at the price of
      activations that 8 bits no longer hold.
    - ReLU6 is no obstacle: its bound becomes 6/sᵢ, a ReLU and a ``minimum`` with a tensor, and the function
      stays what it was. The same goes for other clamps from 0 to a number.

    The overall size of each tensor is kept; only channels move against each other.

    Args:
        floor: ranges below this part of the layer's largest weight count as this part: what is quantized
            to nothing anyway, and dead channels, pull at nobody.
        rounds: the most passes over the network. tolerance: a pass that moved no scale by more than this
            factor (in log2) is the last.

    >>> from tersor.network.capture import capture
    >>> pair = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> pair[0].weight.data = torch.tensor([[8.0, 0.0], [0.0, 0.5]])
    >>> pair[2].weight.data = torch.tensor([[0.5, 8.0]])
    >>> network = Equalize()(capture(pair.eval(), (torch.ones(1, 2),)))
    >>> network.tensor("0.weight").tolist(), network.tensor("2.weight").tolist()
    ([[2.0, 0.0], [0.0, 2.0]], [[2.0, 2.0]])
    """

    floor: float = 1e-4
    rounds: int = 50
    tolerance: float = 1e-3
    idempotent: ClassVar[bool] = False

    def __call__(self, network: Network, statistics: Mapping[str, Statistics] | None = None) -> Network:
        """The equalized network; a network without a space is returned with nothing changed."""
        network = network.edit()
        found = spaces(network)
        sizes = {n: self._raised(_magnitudes(network, n)) for s in found for n in s.producers + s.consumers}
        peaks = [_peaks(network, space, statistics or {}) for space in found]
        peaks = [None if p is None else self._raised(p) for p in peaks]
        scales = [torch.zeros(space.channels, dtype=torch.float64) for space in found]  # log2 s
        for _ in range(self.rounds):
            moved = 0.0
            for k, space in enumerate(found):
                step = _step(space, sizes, peaks[k], scales[k])
                scales[k] += step
                _scale_sizes(space, sizes, step.exp2())
                moved = max(moved, float(step.abs().max()))
            if moved < self.tolerance:
                break
        for space, scale in zip(found, scales, strict=True):
            rescale(network, space, scale.exp2())
        return finish(network)

    def _raised(self, sizes: Tensor) -> Tensor:
        top = float(sizes.max())
        return sizes.clamp(min=top * self.floor) if top > 0 else torch.ones_like(sizes)


def _step(space: Space, sizes: dict[fx.Node, Tensor], peaks: Tensor | None, scale: Tensor) -> Tensor:
    """log2 of the factors that bring this space, taken alone, to its best."""
    outs = [sizes[n].amax(1) for n in space.producers]
    ins = [_by_input(sizes[n], n) for n in space.consumers]
    if peaks is not None:
        outs.append(peaks / scale.exp2())
    out, into = (torch.stack([r / r.max() for r in side]).amax(0).log2() for side in (outs, ins))
    step = (out - into) / 2
    return step - step.mean()


def _peaks(network: Network, space: Space, statistics: Mapping[str, Statistics]) -> Tensor | None:
    """The largest magnitude of each channel that anybody reads, float64; None where nothing was observed."""
    seen = []
    for node in space.values:
        channels = statistics[node.name].channels if node.name in statistics else None
        if channels is None or space.axis != 1 or len(channels.max) != space.channels:
            continue
        # A quantizer stands behind the activation, which is fused into the layer before it.
        low, high = bounded(network, node, channels.min.double(), channels.max.double())
        seen.append(torch.maximum(-low, high))
    return torch.stack(seen).amax(0) if seen else None


def _magnitudes(network: Network, layer: fx.Node) -> Tensor:
    """max |W| over the kernel, float64 [out, in/groups]."""
    node = weight_node(layer)
    assert node is not None
    weight = network.tensor(node)
    return weight.abs().reshape(*weight.shape[:2], -1).amax(2).double()


def _by_input(sizes: Tensor, layer: fx.Node) -> Tensor:
    """The largest weight of each input channel, [in]."""
    return sizes.unflatten(0, (groups_of(layer), -1)).amax(1).flatten()


def _scale_sizes(space: Space, sizes: dict[fx.Node, Tensor], scale: Tensor) -> None:
    for n in space.producers:
        sizes[n] = sizes[n] / scale[:, None]
    for n in space.consumers:
        sizes[n] = sizes[n] * by_weight(scale, n, len(sizes[n]))
