"""The zeros among a network's weights, and the same network with other values in their place."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from tersor.checkpoints.sparse.storage import STORAGES, Pattern
from tersor.network.network import Network, set_tensor, weight_node
from tersor.network.network import finish as finished
from tersor.numerics.qtensor import expand

# Zeros are taken for pruning if they are at least this share of the float weights, none of which is zero by chance.
LEAST = 0.05


class Weight(NamedTuple):
    """A weight as a network stores it.

    Args:
        name: of the tensor.
        values: codes, or floats.
        zero: what stands for zero in it, in its shape.
        bits: of a value.
    """

    name: str
    values: Tensor
    zero: Tensor
    bits: int

    @property
    def zeros(self) -> Tensor:
        """Where it is zero."""
        return self.values == self.zero


def weights_of(network: Network) -> Iterator[Weight]:
    """Every weight that a layer reads, each once."""
    seen = set[str]()
    for node in network.operators():
        if node.target is torch.ops.tersor.dequantize.default:
            codes, zero = network.tensor(node.args[0]), network.tensor(node.args[2])  # type: ignore[arg-type]
            name, bits = str(node.args[0].target), int(node.meta["bits"])  # type: ignore[union-attr]
            floats = codes.is_floating_point() or bits == 1
            zero = torch.zeros_like(codes) if floats else expand(zero, codes.shape, int(node.args[3]))  # type: ignore[arg-type]
            found = Weight(name, codes, zero.to(codes.dtype).expand(codes.shape), bits)
        elif (source := _float_weight(node)) is not None:
            values = network.tensor(source).detach()
            found = Weight(str(source.target), values, torch.zeros_like(values), 8 * values.element_size())
        else:
            continue
        if found.name not in seen:
            seen.add(found.name)
            yield found


def _float_weight(node: fx.Node) -> fx.Node | None:
    """The float weight that an operator reads, also through a conversion from half precision."""
    if (found := weight_node(node)) is not None:
        return found
    source = node.args[0] if node.args else None
    stored = node.target is torch.ops.aten.to.dtype and isinstance(source, fx.Node) and source.op == "get_attr"
    return source if stored else None  # type: ignore[return-value]


def share_of_zeros(weights: Sequence[Weight]) -> float:
    """The share of zeros of all their values."""
    count = sum(w.values.numel() for w in weights)
    return sum(int(w.zeros.sum()) for w in weights) / count if count else 0.0


def pattern_of(floats: Sequence[Weight], stored: Sequence[Weight]) -> str:
    """The strictest n:m that holds in every stored weight whose float weight has zeros; empty if none does."""
    pruned = tuple(w.name for w in floats if float(w.zeros.float().mean()) >= LEAST)
    # Codes are named after the weight that they stand for.
    masks = [~w.zeros for w in stored if w.name.startswith(pruned)]
    patterns = [(s.n / s.m, name) for name, s in STORAGES.items() if isinstance(s, Pattern)]
    for _, name in sorted(patterns):
        n, m = map(int, name.split(":"))
        if masks and all(not x.numel() % m and bool((x.reshape(-1, m).sum(1) <= n).all()) for x in masks):
            return name
    return ""


def filled(network: Network) -> Network:
    """The network with small values of both signs in place of the zeros of its weights; all else is the same."""
    network = network.edit()
    for weight in list(weights_of(network)):
        set_tensor(network, weight.name, _filled(weight))
    return finished(network)


def _filled(weight: Weight) -> Tensor:
    values, zeros = weight.values, weight.zeros
    if not bool(zeros.any()):
        return values
    signs = torch.arange(values.numel()).reshape(values.shape) % 2 * 2 - 1
    if values.is_floating_point():
        others = values.float().abs()[~zeros]
        # The median: denormal numbers would take longer than others.
        size = float(others.median()) if others.numel() else 1.0
        return torch.where(zeros, signs * size, values.float()).to(values.dtype)
    low, high = (-(2 ** (weight.bits - 1)), 2 ** (weight.bits - 1) - 1) if values.dtype.is_signed else (
        0, 2**weight.bits - 1
    )  # fmt: skip
    # int8 of symmetric weights has no −128.
    near = weight.zero.int() + signs
    near = torch.where((near < low + 1) | (near > high), weight.zero.int() - signs, near)
    return torch.where(zeros, near, values.int()).to(values.dtype)
