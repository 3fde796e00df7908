"""Rewrite averages over the whole feature map as global average pools, which engines support best."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx

from tersor.network.network import Network, argument, aten, finish


@dataclass(frozen=True)
class GlobalPool:
    """Rewrite an ``avg_pool2d`` whose single window covers the feature map as ``adaptive_avg_pool2d(x, 1)``.

    With ``ceil_mode`` the window may be larger than the map, which some engines reject.
    """

    idempotent: ClassVar[bool] = True

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        network = network.edit()
        for node in network.operators():
            if node.target is aten.avg_pool2d.default and _covers(node):
                with network.graph.inserting_before(node):
                    pool = network.graph.call_function(aten.adaptive_avg_pool2d.default, (node.args[0], [1, 1]))
                pool.meta.update(node.meta)
                node.replace_all_uses_with(pool)
                network.graph.erase_node(node)
        return finish(network)


def _covers(node: fx.Node) -> bool:
    source = node.args[0]
    value, result = source.meta.get("val") if isinstance(source, fx.Node) else None, node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(result, Tensor):
        return False
    padding, divisor = argument(node, 3, "padding", [0]), argument(node, 6, "divisor_override")
    kernel, size = list(argument(node, 1, "kernel_size")), value.shape[2:]
    kernel = kernel * 2 if len(kernel) == 1 else kernel
    plain = not any(padding) and divisor is None and all(isinstance(n, int) for n in (*kernel, *size))
    return plain and tuple(result.shape[2:]) == (1, 1) and all(k >= n for k, n in zip(kernel, size, strict=True))
