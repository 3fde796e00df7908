"""Cross-layer equalization: equal channel ranges within each tensor, for the same function."""

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
    """Scale channels between layers so that one scale per tensor suits all of its channels.

    Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.1: output channel i of a layer is
    divided by sᵢ, and input channel i of its reader multiplied by it, with sᵢ = √(r¹ᵢ/r²ᵢ) from the two ranges;
    repeated over the network until convergence. Extensions of the paper:

    - Several producers and consumers may share channels (``spaces``), so residual streams are scaled too. A channel's
      range is then the largest it has in any of them, relative to each one's maximum, since that determines how few
      codes the channel gets.
    - With ``statistics`` (of the outputs of layers and residual adds, by graph name) the activation counts as one more
      producer; weights alone would be equalized at the expense of activations that 8 bits cannot represent.
    - ReLU6 and other clamps from 0 to a number become a ReLU and a ``minimum`` with a tensor, here 6/sᵢ, which keeps
      the function.

    The overall magnitude of each tensor is kept; only channels change relative to each other.

    Args:
        floor: ranges below this fraction of the layer's largest weight count as this fraction, so that channels that
            quantize to zero, and dead ones, do not affect others.
        rounds: maximal number of passes over the network.
        tolerance: stop after a pass that changed no scale by more than this factor (in log2).

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
        """The equalized network; without a space nothing changes."""
        network = network.edit()
        all_spaces = spaces(network)
        sizes = {n: self._with_floor(_magnitudes(network, n)) for s in all_spaces for n in s.producers + s.consumers}
        peaks = [_peaks(network, space, statistics or {}) for space in all_spaces]
        peaks = [None if p is None else self._with_floor(p) for p in peaks]
        scales = [torch.zeros(space.channels, dtype=torch.float64) for space in all_spaces]  # log2 s
        for _ in range(self.rounds):
            moved = 0.0
            for k, space in enumerate(all_spaces):
                step = _step(space, sizes, peaks[k], scales[k])
                scales[k] += step
                _scale_sizes(space, sizes, step.exp2())
                moved = max(moved, float(step.abs().max()))
            if moved < self.tolerance:
                break
        for space, scale in zip(all_spaces, scales, strict=True):
            rescale(network, space, scale.exp2())
        return finish(network)

    def _with_floor(self, sizes: Tensor) -> Tensor:
        top = float(sizes.max())
        return sizes.clamp(min=top * self.floor) if top > 0 else torch.ones_like(sizes)


def _step(space: Space, sizes: dict[fx.Node, Tensor], peaks: Tensor | None, scale: Tensor) -> Tensor:
    """log2 of the factors that are optimal for this space alone."""
    outs = [sizes[n].amax(1) for n in space.producers]
    ins = [_by_input(sizes[n], n) for n in space.consumers]
    if peaks is not None:
        outs.append(peaks / scale.exp2())
    out, into = (torch.stack([r / r.max() for r in side]).amax(0).log2() for side in (outs, ins))
    step = (out - into) / 2
    return step - step.mean()


def _peaks(network: Network, space: Space, statistics: Mapping[str, Statistics]) -> Tensor | None:
    """The largest magnitude of each channel in any value that is read, float64, or None if none was observed."""
    magnitudes = []
    for node in space.values:
        channels = statistics[node.name].channels if node.name in statistics else None
        if channels is None or space.axis != 1 or len(channels.max) != space.channels:
            continue
        # The quantizer follows the activation function, which is fused into the layer before it.
        low, high = bounded(network, node, channels.min.double(), channels.max.double())
        magnitudes.append(torch.maximum(-low, high))
    return torch.stack(magnitudes).amax(0) if magnitudes else None


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
