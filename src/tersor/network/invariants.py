"""The invariants of a graph as a table; ``tersor.network.verify`` checks networks against it."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from tersor.network.network import (
    EMBEDDINGS,
    LINEARS,
    TRANSPOSED,
    WEIGHTED,
    Network,
    argument,
    groups_of,
    op_name,
    title,
    weight_position,
)
from tersor.numerics import fakequant  # noqa: F401  (registers torch.ops.tersor)
from tersor.numerics.ranges import fits

_QUANTIZERS = (torch.ops.tersor.fake_quantize.default, torch.ops.tersor.cast.default)
_DEQUANTIZE = torch.ops.tersor.dequantize.default
_WIDENING = torch.ops.aten.to.dtype

# A node (or None for the whole graph) and its fault.
Fault = tuple[fx.Node | None, str]


@dataclass(frozen=True)
class Facts:
    """A network, with properties that several invariants use."""

    network: Network

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """All nodes in order."""
        return list(self.network.graph.nodes)

    @cached_property
    def has_values(self) -> bool:
        """Whether the nodes know the shapes of their values, as in a captured network but not in a loaded one."""
        return any(_value(n) is not None for n in self.nodes if n.op == "placeholder")

    def tensor(self, node: object) -> Tensor | None:
        """The tensor that a get_attr node reads, or None."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        try:
            found = self.network.tensor(node)
        except AttributeError:
            return None
        return found if isinstance(found, Tensor) else None

    def shape(self, node: object) -> tuple[Any, ...] | None:
        """The shape of a value: that of a stored weight, else the captured shape, or None if unknown."""
        if isinstance(node, fx.Node) and node.target in (_DEQUANTIZE, _WIDENING):
            return self.shape(node.args[0])
        found = self.tensor(node)
        found = _value(node) if found is None else found
        return None if found is None else tuple(found.shape)


@dataclass(frozen=True)
class Invariant:
    """A condition that every graph satisfies.

    Args:
        name: the invariant's name in tests and errors.
        states: the condition, as a sentence.
        faults: yields the nodes that violate it, each with its fault.
    """

    name: str
    states: str
    faults: Callable[[Facts], Iterator[Fault]]


def _value(node: object) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _differ(a: object, b: object) -> bool:
    """Whether two sizes are known numbers and differ."""
    return type(a) is int and type(b) is int and a != b


def _operators(facts: Facts) -> Iterator[Fault]:
    for node in facts.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            yield node, f"is a {node.op}"
        elif node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            yield node, f"{node.target} writes into what it reads"


def _order(facts: Facts) -> Iterator[Fault]:
    before: set[fx.Node] = set()
    for node in facts.nodes:
        for source in node.all_input_nodes:
            if source not in before:
                yield node, f"reads {source.name}, which comes later or is not in the graph"
        before.add(node)


def _inputs(facts: Facts) -> Iterator[Fault]:
    network = facts.network
    found = [n for n in facts.nodes if n.op == "placeholder"]
    if not len(found) == len(network.input_names) == len(network.example):
        yield None, f"{len(found)} placeholders, {len(network.input_names)} names, {len(network.example)} examples"
        return
    for node, example in zip(found, network.example, strict=True):
        value = _value(node)
        if value is None:
            continue
        shapes = tuple(value.shape), tuple(example.shape)
        if value.dtype != example.dtype or value.ndim != example.ndim or any(map(_differ, *shapes)):
            yield node, f"has {value.dtype} {list(value.shape)}, the example {example.dtype} {list(example.shape)}"


def _outputs(facts: Facts) -> Iterator[Fault]:
    found = [n for n in facts.nodes if n.op == "output"]
    if len(found) != 1 or facts.nodes[-1] is not found[0]:
        yield None, f"{len(found)} output nodes, the last node is {facts.nodes[-1].name}"
        return
    values, names = found[0].args[0], facts.network.output_names
    if not isinstance(values, tuple) or not all(isinstance(v, fx.Node) for v in values):
        yield found[0], f"gives {values}"
    elif len(values) != len(names):
        yield found[0], f"gives {len(values)} values under {len(names)} names"


def _tensors(facts: Facts) -> Iterator[Fault]:
    for node in facts.nodes:
        if node.op == "get_attr" and facts.tensor(node) is None:
            yield node, f"the module has no tensor {node.target}"


def _dead(facts: Facts) -> Iterator[Fault]:
    for node in facts.nodes:
        if node.op in ("get_attr", "call_function") and not node.users and not node.is_impure():
            yield node, "no node reads it"


def _values(facts: Facts) -> Iterator[Fault]:
    for node in facts.nodes if facts.has_values else ():
        schema = getattr(node.target, "_schema", None)
        gives = [str(r.type) for r in schema.returns] if schema is not None else []
        if node.op == "call_function" and "Tensor" in gives and node.meta.get("val") is None:
            yield node, f"{op_name(node)} has no meta['val']"


def _stored(facts: Facts) -> Iterator[Fault]:
    for node in facts.nodes:
        tensor, value = facts.tensor(node), _value(node)
        if tensor is None or value is None:
            continue
        if tensor.dtype != value.dtype or tuple(tensor.shape) != tuple(value.shape):
            yield node, f"is {tensor.dtype} {list(tensor.shape)}, meta['val'] {value.dtype} {list(value.shape)}"


def _layers(facts: Facts) -> Iterator[Fault]:
    for node in facts.nodes:
        if node.target not in (*WEIGHTED, *EMBEDDINGS):
            continue
        weight = facts.shape(node.args[weight_position(node)])
        source, out = facts.shape(node.args[1 - weight_position(node)]), _value(node)
        if weight is None:
            continue
        if node.target in EMBEDDINGS:
            wanted, given, made, axis = None, None, weight[-1], -1
        elif node.target in LINEARS:
            wanted, given, made, axis = weight[-1], source and source[-1], weight[0], -1
        else:
            groups, spatial = groups_of(node), len(weight) - 2
            rows, columns = weight[0], weight[1] * groups
            wanted, made = (rows, columns) if node.target in TRANSPOSED else (columns, rows)
            axis = -1 - spatial
            given = source[axis] if source is not None and len(source) > spatial else None
            if rows % groups:
                yield node, f"{rows} filters do not divide into {groups} groups"
        if _differ(wanted, given):
            yield node, f"its weight {list(weight)} reads {wanted} channels, its input has {given}"
        if out is not None and _differ(made, out.shape[axis]):
            yield node, f"its weight {list(weight)} makes {made} channels, meta['val'] has {out.shape[axis]}"
        bias = facts.shape(argument(node, 2, "bias")) if node.target in WEIGHTED else None
        if bias is not None and bias != (made,):
            yield node, f"its bias has the shape {list(bias)}, its weight {list(weight)} makes {made} channels"


def _grid(facts: Facts, scale: object, zero_point: object, low: int, high: int) -> str | None:
    """The fault of a quantizer's parameters, or None."""
    step, zero = facts.tensor(scale), facts.tensor(zero_point)
    if step is None or (zero is None and zero_point is not None):
        return "its scale and zero point are not stored tensors"
    least, most = (float(one) for one in step.aminmax())
    if not (least > 0 and most < float("inf")):
        return f"its scale is from {least:.4g} to {most:.4g}"
    if zero is not None:
        least, most = (float(one) for one in zero.aminmax())
        if not (low <= least and most <= high) or not torch.equal(zero, zero.round()):
            return f"its zero point is from {least:g} to {most:g}, its codes from {low} to {high}"
    return None


def _quantizers(facts: Facts) -> Iterator[Fault]:
    for node in facts.nodes:
        if node.target not in _QUANTIZERS:
            continue
        if node.target is _QUANTIZERS[1]:
            fault = _grid(facts, node.args[2], None, 0, 0)
        else:
            _, scale, zero_point, low, high, _ = node.args
            fault = _grid(facts, scale, zero_point, low, high)  # type: ignore[arg-type]
            fault = fault if low < high else f"its codes are from {low} to {high}"  # type: ignore[operator]
        if fault is not None:
            yield node, fault


def _codes(facts: Facts) -> Iterator[Fault]:
    for node in facts.nodes:
        if node.target is not _DEQUANTIZE:
            continue
        source, scale, zero_point, block = node.args
        codes = facts.tensor(source)
        if codes is None:
            yield node, "its codes are not a stored tensor"
            continue
        low, high = _range(codes.dtype, node.meta)
        if (fault := _grid(facts, scale, zero_point, low, high)) is not None:
            yield node, fault
            continue
        if node.meta.get("bits", 8) < 8 and codes.numel():
            least, most = (int(one) for one in codes.aminmax())
            if least < low or most > high:
                yield node, f"its codes are from {least} to {most}, {node.meta['bits']} bits hold {low} to {high}"
        for t in (facts.tensor(scale), facts.tensor(zero_point)):
            if t is not None and not fits(t.shape, codes.shape, block):  # type: ignore[arg-type]
                yield node, f"parameters of shape {list(t.shape)} in groups of {block} for codes {list(codes.shape)}"


def _range(dtype: torch.dtype, meta: Mapping[str, Any]) -> tuple[int, int]:
    """The smallest and the largest code of the stored bit width; −1 and 1 for binary, which has one bit."""
    if dtype.is_floating_point:
        return 0, 0
    bits = meta.get("bits", torch.iinfo(dtype).bits)
    low = -(2 ** (bits - 1)) if dtype.is_signed else 0
    return low, max(low + 2**bits - 1, 1)


def _titles(facts: Facts) -> Iterator[Fault]:
    layers = [n for n in facts.nodes if n.target in (*WEIGHTED, *EMBEDDINGS)]
    counts = Counter(map(title, layers))
    for node in facts.nodes:
        named = node.op != "call_function" or "title" in node.meta or node.target is operator.getitem
        if not named:
            yield node, "it has no title"
        elif node in layers and counts[title(node)] > 1:
            yield node, f"{counts[title(node)]} layers have this title"


INVARIANTS: tuple[Invariant, ...] = (
    Invariant("operators", "nodes are inputs, tensors, the output, and functions without side effects", _operators),
    Invariant("order", "a node reads only nodes that come before it", _order),
    Invariant("inputs", "placeholders, input names and examples match", _inputs),
    Invariant("output", "the last node is the only output, a tuple of nodes, each with a name", _outputs),
    Invariant("tensors", "every get_attr node reads a tensor", _tensors),
    Invariant("dead", "every computed value is read", _dead),
    Invariant("values", "a captured network knows the shape and dtype of every operator's value", _values),
    Invariant("stored", "meta['val'] of a stored tensor has its shape and dtype", _stored),
    Invariant("layers", "weight, bias, input and output of a layer have the same channels", _layers),
    Invariant("quantizers", "a scale is positive and finite, a zero point one of the codes", _quantizers),
    Invariant("codes", "codes, scale and zero point of a stored weight fit its format and shape", _codes),
    Invariant("titles", "every operator has a title, and no two layers have the same title", _titles),
)
