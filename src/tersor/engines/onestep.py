"""The one-step check: every operator of a compiled network compared with the simulation, from the engine's own inputs.

End-to-end differences grow along a network and prove nothing. Here the network is compiled once more with its inner
values as outputs; each value is simulated from the nearest values before it that the engine itself computed, and the
two are compared in codes.
"""

from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tersor.engines.base import Account, Checked, Engine, Runner
from tersor.engines.exposure import STATIC, edges_of, expose, outputs_of, placeholders
from tersor.network.chunks import bytes_of_sample
from tersor.network.network import Network, call, op_name, title
from tersor.network.quantize import is_quantizer
from tersor.network.roles import is_float_tensor
from tersor.numerics.ranges import expand
from tersor.words import said

# Samples compared, and the memory limit of their values in bytes; fewer samples if they would exceed it.
SAMPLES, MEMORY = 4, 2**29
# A float value is compared in codes of 8 bits of its own range.
_FLOAT_CODES = 255
# Times the median magnitude: values beyond are masks, or outliers that are measured separately.
_BULK = 100
# Of a code: the tolerance for float arithmetic in another order.
ROUNDING = 0.005
_AT_RUN_TIME = ("quantize_rows", "quantize_whole")


def account(engine: Engine, network: Network, runner: Runner, inputs: Sequence[Tensor]) -> Account:
    """The account of most engines: the runner's report, and the one-step check on ``inputs``, if given."""
    executed = tuple(runner.executed())
    return Account(executed, tuple(check_steps(engine, network, runner, inputs)) if inputs else ())


def check_steps(engine: Engine, network: Network, runner: Runner, inputs: Sequence[Tensor]) -> list[Checked]:
    """One Checked for every value between the engine's operators, in graph order.

    Args:
        network: the quantized network that ``runner`` was compiled from.
        inputs: one batch; the first samples are used.
    """
    edges = edges_of(network, runner, engine.policy().transparent)
    inputs = _first(network, inputs, edges)
    if runner.precision != "f32":
        note = said(
            "float operators compute in {precision}, as asked; the simulation computes in FP32",
            precision=runner.precision,
        )
        return [Checked(n.name, title(n), (op_name(n),), "unchecked", note=note) for n in edges]
    exposed = expose(engine, network, runner, edges, inputs)
    known = {network.node(name): value for name, value in exposed.values.items()}
    known |= dict(zip(placeholders(network), exposed.inputs, strict=True))
    outputs = outputs_of(network)
    known |= {n: v for n, v in zip(outputs, exposed.deployed, strict=True) if n not in known}
    steps = []
    for node in network.graph.nodes:
        if node in edges or (node in outputs and node.op == "call_function" and is_float_tensor(node)):
            steps.append(_step(network, node, known, engine.tolerance, exposed.unchecked))
    return steps


def _step(
    network: Network,
    node: fx.Node,
    known: Mapping[fx.Node, Tensor],
    tolerance: float,
    unchecked: Mapping[str, str],
) -> Checked:
    covered = between(node, known)
    ops = [n for n in reversed(covered) if n.op == "call_function" and not is_quantizer(n)]
    kinds = tuple(dict.fromkeys(map(op_name, ops)))
    about = Checked(node.name, title(node), kinds, "unchecked", note=unchecked.get(node.name))
    if node not in known:
        return about
    engine, unit = known[node].double(), _unit(network, node, known[node])

    def codes(skipped: Set[fx.Node], *raw: fx.Node) -> Tensor:
        given = {n: v for n, v in known.items() if n is not node and n not in raw}
        simulated = simulate(network, node, given, skipped).double()
        return difference(engine, simulated) / unit

    found = codes(frozenset())
    largest = float(found.max()) if found.numel() else 0.0
    rounded = _rounded(network, node, engine)
    if largest <= tolerance + ROUNDING and rounded is not False:
        return replace(about, verdict="planned", largest=largest)
    if any(n.name in unchecked for n in covered):
        note = said("the values before it are not available; differences of several operators add up in it")
        return replace(about, largest=largest, note=note)
    about = replace(about, largest=largest, beyond=float((found > tolerance + ROUNDING).double().mean()))
    inner = {n for n in covered if n is not node and op_name(n) in STATIC}
    if inner and float(codes(inner).max()) <= tolerance + ROUNDING:
        names = ", ".join(title(n) for n in inner)
        note = said(
            "the engine does not round {names} inside it; without that rounding its numbers are as planned",
            names=names,
        )
        return replace(about, verdict="other", note=note)
    # The engine may have rounded neither the inputs nor the output of the step.
    read = {n for c in covered for n in c.all_input_nodes if n in known and op_name(n) in STATIC}
    everywhere = {*read, *(n for n in covered if op_name(n) in (*STATIC, *_AT_RUN_TIME))}
    closer = codes(everywhere, *read).norm() < found.norm()
    return replace(about, verdict="float" if closer and not rounded else "other")


def difference(engine: Tensor, simulated: Tensor) -> Tensor:
    """Absolute differences; 0 where both are the same infinity or NaN, infinite where only one is NaN."""
    same = (engine == simulated) | (engine.isnan() & simulated.isnan())
    return (engine - simulated).abs().nan_to_num(torch.inf, torch.inf).masked_fill(same, 0.0)


def _scale(network: Network, node: fx.Node, value: Tensor) -> Tensor | None:
    """The scale of a quantizer, expanded to its value; None for any other node."""
    if op_name(node) != "fake_quantize":
        return None
    block: Any = node.args[5]
    return expand(network.tensor(node.args[1]), value.shape, block).double()  # type: ignore[arg-type]


def _unit(network: Network, node: fx.Node, value: Tensor) -> Tensor:
    """The size of one code of a value."""
    scale = _scale(network, node, value)
    if scale is not None:
        return scale
    finite = value[value.isfinite()].double()
    if not finite.numel():
        return torch.ones((), dtype=torch.float64)
    # Masked values, in the thousands or more, must not determine the scale of the others.
    bulk = finite[finite.abs() <= _BULK * finite.abs().median()]
    bulk = bulk if len(bulk) and bulk.any() else finite
    span = bulk.max().clamp_min(0) - bulk.min().clamp_max(0)
    largest = value.double().abs().nan_to_num(0.0, 0.0)
    return torch.maximum(span, largest).clamp_min(1e-30) / _FLOAT_CODES


def _rounded(network: Network, node: fx.Node, value: Tensor) -> bool | None:
    """Whether the values of a quantizer are codes times its scale; None if there is no such scale."""
    scale = _scale(network, node, value)
    if scale is None:
        return None
    codes = value / scale
    return bool(((codes - codes.round()).abs() < 0.05).all())


def between(node: fx.Node, known: Container[fx.Node]) -> list[fx.Node]:
    """The nodes from the nearest known values up to ``node``, in graph order."""
    found, front = {node}, [node]
    while front:
        for source in front.pop().all_input_nodes:
            if source not in known and source not in found:
                found.add(source)
                front.append(source)
    return [n for n in node.graph.nodes if n in found]


def simulate(
    network: Network, node: fx.Node, known: Mapping[fx.Node, Tensor], skipped: Container[fx.Node] = ()
) -> Tensor:
    """The value of a node, computed from the nearest known values; ``skipped`` quantizers do not round."""
    values: dict[fx.Node, Any] = dict(known)
    with torch.no_grad():
        for step in between(node, known):
            if step.op == "get_attr":
                values[step] = network.tensor(step)
            elif step in skipped:
                values[step] = values[step.all_input_nodes[0]]
            else:
                args, kwargs = map_arg((step.args, step.kwargs), values.__getitem__)
                values[step] = call(step, args, kwargs)
    return values[node]


def _first(network: Network, inputs: Sequence[Tensor], edges: Sequence[fx.Node]) -> tuple[Tensor, ...]:
    """The first samples, as many as the memory for the values of all edges allows.

    Only one if an engine may share a run-time scale within a thread's part of the batch.
    """
    if not network.dynamic_batch:
        fits = [x.shape for x in inputs] == [x.shape for x in network.example]
        return tuple(inputs) if fits else tuple(network.example)
    whole = any(op_name(n) == "quantize_whole" for n in network.operators())
    each = sum(bytes_of_sample(n.meta.get("val")) for n in edges)
    samples = 1 if whole else max(1, min(SAMPLES, MEMORY // max(1, each)))
    return tuple(x[:samples] if x.ndim else x for x in inputs)
