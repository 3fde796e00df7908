"""The values between an engine's operators, from compiles that reproduce the deployed outputs bit for bit."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from tersor.engines.base import Engine, Runner
from tersor.engines.numbers import parts_of
from tersor.errors import EngineError
from tersor.network.explain import summary
from tersor.network.network import Network, finish, op_name, walk
from tersor.network.quantize import is_quantizer
from tersor.network.roles import is_float_tensor
from tersor.words import said

# The maximum number of debug compiles.
COMPILES = 20
_FEW = said("{count} compiles were too few to find what changes the engine's network", count=COMPILES)
# Quantizers whose values exist in every engine; those at run time are inside the engine's products.
STATIC = ("fake_quantize", "cast")


@dataclass
class Exposed:
    """The values of the engine's edges for ``inputs``, by graph name, and why others are unknown."""

    inputs: tuple[Tensor, ...]
    deployed: tuple[Tensor, ...]
    values: dict[str, Tensor] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)
    compiles: int = 0


def expose(
    engine: Engine, network: Network, runner: Runner, edges: list[fx.Node], inputs: tuple[Tensor, ...]
) -> Exposed:
    """The values of the edges, from debug compiles that reproduce the deployed outputs bit for bit.

    An edge becomes an output. An edge to which another value is added is cut instead, since an engine may compute in
    its memory: its readers read an additional input, which is fed with the value that comes out. If that changes the
    engine's network, only the samples that still reproduce the deployed outputs are used: sums in another order round
    a value near the midpoint of two codes to the other one, and few samples contain such a value. If there are none,
    the responsible edges are searched for. Values from one compile are best: values that no output depends on, such as
    a padded token, may differ between two.
    """
    search = _Search(engine, network, runner, Exposed(inputs, parts_of(runner(*inputs))))
    joined = [n for n in edges if _is_joined(n)]
    if not edges or search.keeps(edges, []):
        return search.found
    if joined and search.narrows(edges, joined):
        return search.found
    search.halve([n for n in edges if n not in joined])
    search.sift(joined)
    return search.found


def _is_joined(node: fx.Node) -> bool:
    """Whether another value is added to this one."""
    sums = [u for u in node.users if op_name(u) in ("add", "sub")]
    return any(sum(n.op != "get_attr" for n in u.all_input_nodes) > 1 for u in sums)


@dataclass(frozen=True)
class _Trial:
    """The result of a debug compile: outputs, values of edges, and ``why`` they are not the deployed network's."""

    results: tuple[Tensor, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)
    why: str = ""


@dataclass
class _Search:
    """Debug compiles of one network, and the values known from them."""

    engine: Engine
    network: Network
    runner: Runner
    found: Exposed

    def keeps(self, part: list[fx.Node], cut: list[fx.Node]) -> bool:
        """Whether one compile yields the values of ``part``, which are then kept."""
        return self.kept(self.compile(part, cut))

    def kept(self, trial: _Trial) -> bool:
        """Whether a compile reproduced the deployed outputs; if so, its values are kept."""
        if not trial.why:
            self.found.values.update(trial.values)
        return not trial.why

    def narrows(self, part: list[fx.Node], cut: list[fx.Node]) -> bool:
        """Whether a compile yields the values of ``part``, for all samples or those whose outputs it reproduces."""
        trial = self.compile(part, cut)
        if self.kept(trial):
            return True
        pairs = list(zip(trial.results, self.found.deployed, strict=False))
        sizes = {x.shape[:1] for x in (*self.found.inputs, *self.found.deployed)}
        if not self.network.dynamic_batch or not pairs or len(sizes) > 1:
            return False
        samples = len(self.found.inputs[0])
        same = [k for k in range(samples) if all(_equal(a[k], b[k]) for a, b in pairs)]
        if not same:
            return False
        # The same number of samples, since an engine may compile another network for another number.
        taken = [same[k % len(same)] for k in range(samples)]
        before = self.found.inputs, self.found.deployed
        self.found.inputs = tuple(x[taken] for x in self.found.inputs)
        self.found.deployed = parts_of(self.runner(*self.found.inputs))
        if not self.keeps(part, cut):
            self.found.inputs, self.found.deployed = before
            return False
        return True

    def halve(self, edges: list[fx.Node]) -> None:
        """Keep the values available without cuts: of all edges, or else of each half."""
        if len(edges) == 1 or self.spent():
            self.single(edges)
        elif edges and not self.keeps(edges, []):
            self.halve(edges[: len(edges) // 2])
            self.halve(edges[len(edges) // 2 :])

    def sift(self, edges: list[fx.Node]) -> None:
        """Keep the values available with cuts: of all edges, or of those that do not change values known so far."""
        aside: list[fx.Node] = []
        while edges and not self.spent():
            known = [self.network.node(name) for name in self.found.values]
            trial = self.compile([*known, *edges], edges)
            if not trial.why:
                self.found.values.update({n.name: trial.values[n.name] for n in edges})
                return self.single(aside)
            suspects = self.suspects(trial.values, edges) or edges
            aside, edges = [*aside, *suspects], [n for n in edges if n not in suspects]
        return self.single([*aside, *edges])

    def suspects(self, values: Mapping[str, Tensor], edges: list[fx.Node]) -> list[fx.Node]:
        """The edges between the first known value that a compile changed and those that it did not change."""
        known = self.found.values
        changed = {name for name in known if name in values and not _equal(known[name], values[name])}
        first = next((n for n in self.network.graph.nodes if n.name in changed), None)
        pending, between = [first] if first else outputs_of(self.network), set[fx.Node]()
        while pending:
            new = {n for n in pending.pop().all_input_nodes if n.name not in known} - between
            between |= new
            pending += new
        return [n for n in edges if n in between]

    def single(self, edges: list[fx.Node]) -> None:
        """Keep the values available edge by edge, and note why the others are not."""
        for node in edges:
            trial = _Trial(why=_FEW)
            for cut in ([node], []) if _is_joined(node) else ([], [node]):
                if trial.why and not self.spent():
                    trial = self.compile([node], cut)
            if not self.kept(trial):
                self.found.unchecked[node.name] = trial.why

    def spent(self) -> bool:
        return self.found.compiles == COMPILES

    def compile(self, part: list[fx.Node], cut: list[fx.Node]) -> _Trial:
        """Compile with ``part`` as outputs, run it, and compare the deployed outputs bit for bit."""
        self.found.compiles += 1
        network, inputs = self.network, self.found.inputs
        exposed = with_edges(network, part, _simulated(network, cut, network.example))
        try:
            debug = self.engine.compile(exposed, threads=self.runner.threads, precision=self.runner.precision)
            results, values = _settled(debug, part, cut, inputs, _simulated(network, cut, inputs))
        except Exception as error:  # an error of any library: the check must not abort what it checks
            return _Trial(why=said("the engine does not compile it as an output ({error})", error=summary(error)))
        same = all(_equal(a, b) for a, b in zip(results, self.found.deployed, strict=False))
        return _Trial(results, values, "" if same else said("as an output it changes the engine's network"))


def _settled(
    debug: Runner, part: list[fx.Node], cut: list[fx.Node], inputs: tuple[Tensor, ...], guess: dict[fx.Node, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The results of a debug compile and the values of the edges among them.

    A cut value is fed back until input and output agree; each run settles at least the first that does not.
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
    """The network with the values of ``nodes`` as additional outputs.

    If a node is ``cut``, its readers read an additional input, with an example. A cut quantizer also follows its new
    input, where it no longer rounds anything.
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

    A value inside one of the engine's operators is not an edge; an operator that it does not list is part of the one
    that computes its input. Values that are only moved (``moving``) need no check.
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
    if is_quantizer(node):  # the results of half-precision arithmetic, converted to float32
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
