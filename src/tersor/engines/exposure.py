"""The values between an engine's operators, from compiles that give the deployed outputs to the bit."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from tersor.engines.base import Engine, Runner
from tersor.engines.numbers import parts_of
from tersor.errors import EngineError
from tersor.network.explain import summary
from tersor.network.network import WEIGHTED, Network, finish, op_name, walk
from tersor.network.quantize import is_quantizer
from tersor.network.roles import is_float_tensor

# Debug compiles that are tried before values are given up.
COMPILES = 12
# Quantizers whose values exist in every engine; those of run time stand inside the engine's products.
STATIC = ("fake_quantize", "cast")


@dataclass
class Exposed:
    """The values of the engine's edges, by graph name, and why others are not known."""

    deployed: tuple[Tensor, ...]
    values: dict[str, Tensor] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)
    compiles: int = 0


def expose(
    engine: Engine, network: Network, runner: Runner, edges: list[fx.Node], inputs: tuple[Tensor, ...]
) -> Exposed:
    """The values of the edges, from debug compiles that give the deployed outputs to the bit.

    An edge becomes an output. Where that changes the engine's network, an edge that several operators read, or one that
    joins it with another value, is cut instead, or all are; where that changes it too, the edges are parted until the
    one is found that does. Values of one compile are best: what no output depends on, as a padded token, may differ
    between two.
    """
    found = Exposed(parts_of(runner(*inputs)))
    pending = [edges] if edges else []
    few = f"{COMPILES} compiles were too few to find what changes the engine's network"
    while pending:
        part = pending.pop(0)
        whole, joined = len(part) in (1, len(edges)), frozenset(filter(_is_joined, part))
        values, why = {}, few
        for cut in dict.fromkeys((frozenset(), joined, frozenset(part)) if whole else (frozenset(),)):
            if values or found.compiles == COMPILES:
                break
            found.compiles += 1
            values, why = _values(engine, network, runner, part, cut, inputs, found.deployed)
        found.values.update(values)
        if values:
            continue
        if found.compiles < COMPILES and len(part) > 1:
            pending += _parted(part)
        else:
            found.unchecked.update((n.name, why if len(part) == 1 else few) for n in part)
    return found


def _is_joined(node: fx.Node) -> bool:
    """Whether an engine may compute in the memory of this value: a sum is added to it, or several operators read it."""
    sums = [u for u in node.users if u.target not in WEIGHTED and not is_quantizer(u)]
    return len(node.users) > 1 or any(sum(n.op != "get_attr" for n in u.all_input_nodes) > 1 for u in sums)


def _parted(edges: list[fx.Node]) -> list[list[fx.Node]]:
    """Rounded and float values, which engines fuse by other rules; else halves."""
    rounded = [n for n in edges if op_name(n) in STATIC]
    if rounded and len(rounded) < len(edges):
        return [rounded, [n for n in edges if n not in rounded]]
    half = len(edges) // 2
    return [edges[:half], edges[half:]]


def _values(
    engine: Engine,
    network: Network,
    runner: Runner,
    part: list[fx.Node],
    cut: Set[fx.Node],
    inputs: tuple[Tensor, ...],
    deployed: tuple[Tensor, ...],
) -> tuple[dict[str, Tensor], str]:
    """The values of some edges; none, and why, if the debug compile gives other outputs than the deployed one."""
    order = [n for n in part if n in cut]
    exposed = with_edges(network, part, _simulated(network, order, network.example))
    try:
        debug = engine.compile(exposed, threads=runner.threads, precision=runner.precision)
        results, values = _settled(debug, part, order, inputs, _simulated(network, order, inputs))
    except Exception as error:  # of any library: the check may not end what it checks
        return {}, f"the engine does not compile it as an output ({summary(error)})"
    if all(_equal(a, b) for a, b in zip(results, deployed, strict=False)):
        return values, ""
    return {}, "as an output it changes the engine's network"


def _settled(
    debug: Runner, part: list[fx.Node], cut: list[fx.Node], inputs: tuple[Tensor, ...], guess: dict[fx.Node, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The results of a debug compile and the values of the edges among them.

    What is cut is fed back until it is what comes out; each run settles at least the first that is not.
    """
    fed = tuple(guess[n] for n in cut)
    for _ in range(len(cut) + 2):
        results = parts_of(debug(*inputs, *fed))
        values = dict(zip((n.name for n in part), results[-len(part) :], strict=True))
        fed, before = tuple(values[n.name] for n in cut), fed
        if all(map(_equal, fed, before)):
            return results, values
    raise EngineError("its values differ from call to call")


def _simulated(network: Network, nodes: Sequence[fx.Node], inputs: tuple[Tensor, ...]) -> dict[fx.Node, Tensor]:
    """The simulation's values of some nodes."""
    kept: dict[fx.Node, Tensor] = {}
    if nodes:
        walk(network, inputs, lambda node, value: kept.update({node: value}) if node in nodes else None)
    return kept


def with_edges(network: Network, nodes: Sequence[fx.Node], cut: Mapping[fx.Node, Tensor]) -> Network:
    """The network with the values of ``nodes`` as further outputs.

    Where a node is ``cut``, its readers read a further input, of which an example is given. A quantizer that is cut
    stands behind its input too, where it rounds nothing any more.
    """
    network = network.edit()
    graph, copies = network.graph, {n.name: n for n in network.graph.nodes}
    output = next(n for n in graph.nodes if n.op == "output")
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    for node in cut:
        copy, readers = copies[node.name], list(copies[node.name].users)
        with graph.inserting_after(last):
            fed = last = graph.placeholder(f"{node.name}_fed")
        fed.meta.update(val=node.meta.get("val"))
        if op_name(node) in STATIC:
            with graph.inserting_after(copy):
                fed = graph.call_function(copy.target, (last, *copy.args[1:]))  # type: ignore[arg-type]
            fed.meta.update(copy.meta)
        for reader in readers:
            reader.replace_input_with(copy, fed)
    output.args = ((*output.args[0], *(copies[n.name] for n in nodes)),)  # type: ignore[misc]
    return finish(
        replace(
            network,
            input_names=(*network.input_names, *(f"{n.name}_fed" for n in cut)),
            output_names=(*network.output_names, *(f"edge_{k}" for k in range(len(nodes)))),
            example=(*network.example, *cut.values()),
            free=(*network.free, *({} for _ in cut)) if network.free else (),
        )
    )


def edges_of(network: Network, runner: Runner, moving: Set[str]) -> list[fx.Node]:
    """The values that exist between the engine's operators.

    What an engine computes inside one of its operators is not an edge; an operator that it does not list is part of
    the one that makes its input. What operators only move (``moving``) needs no check.
    """
    rows: dict[str, set[int]] = {}
    for k, row in enumerate(runner.executed()):
        for name in row.nodes:
            rows.setdefault(name, set()).add(k)
    for node in network.operators():
        if node.name not in rows:
            makers = () if op_name(node) in moving else node.all_input_nodes
            rows[node.name] = set().union(*(rows.get(n.name, set()) for n in makers))
    outputs = set(outputs_of(network))
    return [
        n
        for n in network.operators()
        if n not in outputs and _is_edge(n, moving) and not any(rows[n.name] & rows.get(u.name, set()) for u in n.users)
    ]


def _is_edge(node: fx.Node, moving: Set[str]) -> bool:
    kind = op_name(node)
    if kind in STATIC:
        return node.args[0].op != "get_attr"  # type: ignore[union-attr]
    if is_quantizer(node):  # what half-precision arithmetic gives, in float32 again
        source: Any = node.args[0]
        return kind == "to" and node.args[1] is torch.float32 and "half" in source.meta
    if kind in moving or "half" in node.meta or not is_float_tensor(node):
        return False
    return not any(op_name(u) in STATIC for u in node.users)


def placeholders(network: Network) -> list[fx.Node]:
    return [n for n in network.graph.nodes if n.op == "placeholder"]


def outputs_of(network: Network) -> list[fx.Node]:
    output = next(n for n in network.graph.nodes if n.op == "output")
    return list(output.args[0])  # type: ignore[arg-type]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
