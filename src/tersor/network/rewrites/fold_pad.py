"""Fold separate zero padding into the convolution that reads it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from tersor.network.network import Network, argument, aten, finish

_DIMENSIONS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}


@dataclass(frozen=True)
class FoldPad:
    """Fold symmetric constant-0 padding into the convolution that reads it.

    Padding that differs left and right cannot be expressed by ATen's convolution and stays an operator.
    """

    idempotent: ClassVar[bool] = True

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        network = network.edit()
        for node in network.operators():
            if node.target in _DIMENSIONS:
                _fold(node)
        return finish(network)


def _fold(conv: fx.Node) -> None:
    pad, spatial = conv.args[0], _DIMENSIONS[conv.target]  # type: ignore[index]
    if not isinstance(pad, fx.Node) or pad.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return
    widths = list(argument(pad, 1, "pad"))
    mode = argument(pad, 2, "mode", "constant") if pad.target is aten.pad.default else "constant"
    value = argument(pad, 3, "value") if pad.target is aten.pad.default else argument(pad, 2, "value")
    if mode != "constant" or value not in (None, 0, 0.0) or not all(isinstance(w, int) for w in widths):
        return
    widths += [0] * (2 * spatial - len(widths))
    pairs = [(widths[2 * k], widths[2 * k + 1]) for k in range(len(widths) // 2)]
    if len(pairs) != spatial or any(a != b or a < 0 for a, b in pairs):
        return
    padding = list(argument(conv, 4, "padding", [0] * spatial))
    padding = padding * spatial if len(padding) == 1 else padding
    arguments = (
        list(conv.args) + [None, [1] * spatial, [0] * spatial][len(conv.args) - 2 :]
        if len(conv.args) < 5
        else list(conv.args)
    )
    for position, key in ((2, "bias"), (3, "stride")):
        if key in conv.kwargs:
            arguments[position] = conv.kwargs[key]
    # pad lists the last dimension first, a convolution its first dimension.
    arguments[4] = [a + b for a, (b, _) in zip(padding, reversed(pairs), strict=True)]
    arguments[0] = pad.args[0]
    conv.args = tuple(arguments)
    conv.kwargs = {k: v for k, v in conv.kwargs.items() if k not in ("bias", "stride", "padding")}
