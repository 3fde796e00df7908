"""Build a trainable module from a quantized network: weights become parameters again, quantizers become modules."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.network.network import Network, aten, finish, title
from tersor.network.trainable.folding import DEAD, Folded, scale_factor
from tersor.network.trainable.graphs import Graphs, Write
from tersor.network.trainable.module import QUANTIZERS, Trainable, check_names
from tersor.network.trainable.sources import Sources, layer_of
from tersor.network.trainable.views import Found, latents, view
from tersor.numerics import fakequant  # noqa: F401  (registers torch.ops.tersor)
from tersor.words import said

_ACTIVATIONS = (torch.ops.tersor.fake_quantize.default, torch.ops.tersor.cast.default)
_WEIGHT = torch.ops.tersor.dequantize.default

Make = Callable[[fx.Node, Tensor, Tensor, Tensor | None], nn.Module | None]
"""A quantizer for a node that quantizes: its scale, its zero point, and the float value of a weight."""


def trainable(
    quantized: Network,
    planned: Network,
    original: Network,
    make: Make,
    parameters: Mapping[str, bool],
    *,
    constants: Mapping[str, str] | None = None,
    cumulative: Mapping[str, int] | None = None,
    dropout: bool = False,
) -> Trainable:
    """The quantized network as a module that trains.

    Args:
        quantized: with quantizers and codes; a float network trains as well.
        planned: the float network that was quantized, whose layers remember the BatchNorm folded into them.
        original: the captured network, which holds the tensors from before folding.
        make: the quantizer of a node; None leaves the node as it is.
        parameters: the names of the model's parameters, and whether they are trained.
        constants: ``constant_tensors(original)``, which are computed from the parameters again.
        cumulative: the batches so far of BatchNorm modules with ``momentum=None``, by dotted name.
        dropout: whether dropout is active while training.

    Raises:
        TaskError: the model has a name that a trainable network needs itself.
    """
    check_names(name for name, _ in original.tensors())
    found = Found(Sources(quantized, planned, original, parameters, constants or {}, cumulative or {}), dropout)
    _quantizers(found, make)
    _floats(found)
    graphs = view(found, training=True), view(found, training=False), latents(found)
    titles = _behind_norms(found)
    for node in (node for graph in graphs[:2] for node in graph.nodes):
        if (name := node.meta.get("title")) in titles:
            node.meta.update(zip(("title", "path"), titles[name], strict=True))
    rename = lambda source: found.sources.name(source) if isinstance(source, str) else source  # noqa: E731
    writes = tuple(replace(write, source=rename(write.source)) for write in found.writes.values())
    made = Graphs(*graphs, finish(quantized.edit()), writes, tuple(_notes(found)), _shapes(planned, titles))
    return Trainable(made, found.tensors, found.modules)


def _notes(found: Found) -> list[str]:
    notes = []
    if not found.dropout and any(n.target is aten.dropout.default for n in found.sources.quantized.operators()):
        notes.append(said("dropout is off while training; `dropout: true` turns it on"))
    if merged := found.sources.merged():
        notes.append(
            said(
                "BatchNorm is part of the weights of {layers}, since equalization or smoothing changed them; with "
                "`equalize: off` and `smooth: off` it is trained",
                layers=", ".join(merged),
            )
        )
    return notes


def _behind_norms(found: Found) -> dict[str, tuple[str, str]]:
    """The titles of layers with a folded BatchNorm, and the title and path of that BatchNorm: their values are its own,
    and a teacher's layer of that name has none of it."""
    layers = [n for n in found.sources.planned.operators() if "folded" in n.meta]
    records = ((title(n), found.sources.folded(n.name)) for n in layers)
    return {name: (f"{r.path}.batch_norm", r.path) for name, r in records if r is not None and r.path}


def _shapes(network: Network, titles: Mapping[str, tuple[str, str]]) -> dict[str, tuple[int, ...]]:
    """What every operator returns for the example, if it is one floating-point tensor."""
    batch = len(network.example[0]) if network.example[0].ndim else 1
    values = {titles.get(title(n), (title(n),))[0]: n.meta.get("val") for n in network.operators()}
    return {
        name: tuple(size if isinstance(size, int) else batch for size in value.shape)
        for name, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def _quantizers(found: Found, make: Make) -> None:
    """The modules of all nodes that quantize, and what is written back for them."""
    for node in found.sources.quantized.operators():
        if not node.meta.get("quantizer"):
            continue
        if node.target in _ACTIVATIONS:
            _activation(found, node, make)
        elif node.target is _WEIGHT:
            _weight(found, node, make)
        elif node.target is aten.to.dtype and _is_stored_half(found, node):
            (stored,) = node.all_input_nodes
            _note(found, node, Write((str(stored.target),), found.sources.weight(layer_of(node).name)))


def _activation(found: Found, node: fx.Node, make: Make) -> None:
    start = 1 if node.target is torch.ops.tersor.fake_quantize.default else 2
    names = tuple(str(a.target) for a in node.args[start:] if isinstance(a, fx.Node))
    if names not in found.writes:
        scale, *zero = (found.sources.quantized.tensor(name) for name in names)
        module = make(node, scale, zero[0] if zero else torch.zeros_like(scale), None)
        if module is None:
            return
        group = names[0].removeprefix(f"{QUANTIZERS}.").removesuffix(".scale")
        found.writes[names] = Write(names, None, _add(found, group, module))
    _note(found, node, found.writes[names])


def _weight(found: Found, node: fx.Node, make: Make) -> None:
    sources, names = found.sources, tuple(str(a.target) for a in node.args[:3] if isinstance(a, fx.Node))
    source = sources.weight(layer_of(node).name)
    _, scale, zero = (sources.quantized.tensor(name) for name in names)
    value = sources.planned.tensor(sources.weight_node(layer_of(node).name))
    per_output, grid = False, (scale, zero)
    if isinstance(source, Folded) and source.groups is None and scale.ndim > 0 and 1 < len(scale) == len(value):
        per_output, grid = True, _relative(sources, source, scale, zero)
    module = make(node, *grid, value)
    if module is not None and per_output and not getattr(module, "commutes", True):
        per_output, module = False, make(node, scale, zero, value)
    if module is None:
        return
    own = source.weight if isinstance(source, Folded) else sources.name(source)
    found.writes[names] = Write(names, source, _add(found, own, module), per_output=per_output)
    _note(found, node, found.writes[names])


def _add(found: Found, what: str, module: nn.Module) -> str:
    """The dotted name of a quantizer; two that differ by dots alone get a number."""
    name = wanted = what.replace(".", "_")
    count = 1
    while f"{QUANTIZERS}.{name}" in found.modules:
        count += 1
        name = f"{wanted}_{count}"
    found.modules[f"{QUANTIZERS}.{name}"] = module
    return f"{QUANTIZERS}.{name}"


def _note(found: Found, node: fx.Node, write: Write) -> None:
    found.writes[write.names] = found.bases[node.name] = write


def _is_stored_half(found: Found, node: fx.Node) -> bool:
    """Whether the node widens a weight that is stored in half precision."""
    stored: Any = node.args[0]
    half = stored.op == "get_attr" and found.sources.quantized.tensor(stored).dtype in (torch.float16, torch.bfloat16)
    return half and str(stored.target) not in dict(found.sources.planned.tensors())


def _relative(sources: Sources, record: Folded, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The grid of the weight before the BatchNorm was folded into it, as a channel with γ = 0 needs one, too."""
    tensor = sources.original.tensor
    weight, variance = sources.plain(record.weight), tensor(record.variance)
    gamma = None if record.gamma is None else tensor(record.gamma)
    factor = scale_factor(gamma, variance, record.eps, scale.ndim)
    relative, alive = scale / factor, (factor > DEAD).expand_as(scale)
    if alive.all():
        return relative, zero
    largest = weight.abs().flatten(1).amax(1).reshape(factor.shape).expand_as(scale)
    usual = (relative / largest)[alive & (largest > 0)].median() if alive.any() else torch.tensor(1.0)
    dead = torch.where(largest > 0, largest, 1.0) * usual
    return torch.where(alive, relative, dead), torch.where(alive, zero, zero[alive].median() if alive.any() else 0.0)


def _floats(found: Found) -> None:
    """What is written of tensors that are not quantized: weights, biases, statistics."""
    sources, quantized = found.sources, {name for names in found.writes for name in names}
    for node in sources.quantized.graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or name in quantized:
            continue
        part = sources.part_of(node)
        write = Write((name,), name) if part is None else Write((name,), part[0], part=part[1])
        found.writes[write.names] = found.bases[node.name] = write
