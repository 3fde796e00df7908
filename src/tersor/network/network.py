"""The network as a graph of ATen operators, and functions to edit it."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tersor.errors import EngineError
from tersor.network.signature import Signature

aten = torch.ops.aten

CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv2d.padding,
    aten.conv1d.padding,
)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
LINEARS = (aten.linear.default,)
EMBEDDINGS = (aten.embedding.default,)
WEIGHTED = CONVOLUTIONS + TRANSPOSED + LINEARS


@dataclass(frozen=True)
class Network:
    """A captured network: an ATen graph whose tensors keep their original dotted names.

    ``module`` is a GraphModule with placeholders, get_attr nodes for the weights and call_function
    nodes for the operators. Editing functions return a new Network; tensors are shared until replaced.

    Args:
        module: the graph and its tensors.
        input_names: names of the inputs in order.
        output_names: names of the outputs in order.
        example: one batch (of at least 2) that the graph was captured with.
        keywords: whether the model is called with keyword arguments.
        free: for each input the dimensions that may vary besides the batch, with the names of their sizes.
        signature: how the model is called and what it returns; None in files of versions that did not store it.
        dynamic_batch: False if the model's own code fixes the batch size to the example's.
        notes: notes on the capture, for the report.
    """

    module: fx.GraphModule
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    example: tuple[Tensor, ...]
    keywords: bool = False
    dynamic_batch: bool = True
    notes: tuple[str, ...] = field(default=())
    signature: Signature | None = None
    free: tuple[Mapping[int, str], ...] = ()

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def __call__(self, *inputs: Tensor, **keyword_inputs: Tensor) -> Any:
        """Run the network; returns one tensor, or a tuple if there are several outputs."""
        inputs = inputs + tuple(keyword_inputs[n] for n in self.input_names[len(inputs) :] if n in keyword_inputs)
        check_count(inputs, self.input_names)
        with torch.no_grad():
            out = self.module(*inputs)
        return out[0] if len(out) == 1 else tuple(out)

    def edit(self) -> "Network":
        """A copy with an editable graph; the tensors are shared with this network."""
        tensors = dict(self.tensors())
        module = fx.GraphModule(tensors, copy.deepcopy(self.graph))
        return replace(self, module=module)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that the graph reads, by dotted name."""
        seen: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target not in seen:
                seen.add(node.target)
                yield node.target, self.tensor(node)

    def tensor(self, node: fx.Node | str) -> Tensor:
        """The tensor of a get_attr node or dotted name."""
        target = node if isinstance(node, str) else str(node.target)
        value: Any = self.module
        for part in target.split("."):
            value = getattr(value, part)
        return value

    def node(self, name: str) -> fx.Node:
        """The node with that graph name."""
        return next(n for n in self.graph.nodes if n.name == name)

    def varying(self, number: int) -> dict[int, str]:
        """The dimensions of an input that may vary, the batch among them, with the names of their sizes."""
        batch = {0: "batch"} if self.dynamic_batch and self.example[number].ndim else {}
        return {**batch, **(self.free[number] if self.free else {})}

    def operators(self) -> list[fx.Node]:
        """The call_function nodes in order."""
        return [n for n in self.graph.nodes if n.op == "call_function"]

    def weight_bytes(self) -> int:
        """Bytes of all tensors in memory."""
        return sum(t.numel() * t.element_size() for _, t in self.tensors())


def check_count(inputs: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse too few or too many inputs.

    Raises:
        EngineError: naming the inputs.
    """
    if len(inputs) != len(names):
        raise EngineError(f"{len(inputs)} inputs were given, but the network takes {len(names)}: {', '.join(names)}")


def weight_node(node: fx.Node) -> fx.Node | None:
    """The get_attr node of the weight that ``node`` reads, or None (a weight computed at run time)."""
    if node.target not in (*WEIGHTED, *EMBEDDINGS) or len(node.args) < 2:
        return None
    weight = node.args[weight_position(node)]
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def weight_position(node: fx.Node) -> int:
    """The argument position of a layer's weight."""
    return 0 if node.target in EMBEDDINGS else 1


def bias_node(node: fx.Node) -> fx.Node | None:
    """The get_attr node of the bias of a weighted operator, or None."""
    bias = argument(node, 2, "bias") if node.target in WEIGHTED else None
    return bias if isinstance(bias, fx.Node) and bias.op == "get_attr" else None


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of an ATen call, given by position or keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def groups_of(node: fx.Node) -> int:
    """The number of groups of a convolution; 1 for anything else."""
    if node.target in CONVOLUTIONS:
        return int(argument(node, 6, "groups", 1))
    if node.target in TRANSPOSED:
        return int(argument(node, 6, "groups", 1))
    return 1


def title(node: fx.Node) -> str:
    """The readable name: the module's dotted name for a weighted operator, otherwise path and op."""
    return str(node.meta.get("title", node.name))


def free_title(network: Network, wanted: str) -> str:
    """``wanted``, or the first unused of ``wanted_2``, ``wanted_3`` …"""
    taken, count, name = {title(n) for n in network.graph.nodes}, 1, wanted
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def op_name(node: fx.Node) -> str:
    """The operator's short name: ``conv2d``, ``add``, ``fake_quantize``."""
    target = node.target
    text = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return str(text).split(".")[0].rstrip("_")


def add_tensor(network: Network, name: str, value: Tensor) -> str:
    """Add a tensor to an edited network under ``name``, with a suffix if that is taken; returns its name."""
    free, k = name, 0
    while _exists(network.module, free):
        k += 1
        free = f"{name}_{k}"
    set_tensor(network, free, value)
    return free


def set_tensor(network: Network, name: str, value: Tensor) -> None:
    """Replace the tensor of that dotted name in an edited network; the old tensor is not modified."""
    *path, leaf = name.split(".")
    owner: torch.nn.Module = network.module
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, torch.nn.Module())
        owner = getattr(owner, part)
    for table in (owner._parameters, owner._buffers):
        table.pop(leaf, None)
    owner.register_buffer(leaf, value.detach())


def _exists(module: torch.nn.Module, name: str) -> bool:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def finish(network: Network) -> Network:
    """Finish an edit: remove dead nodes, check the graph, generate its code."""
    network.graph.eliminate_dead_code()
    network.graph.lint()
    network.module.recompile()
    return network


def walk(
    network: Network,
    inputs: tuple[Any, ...],
    visit: Callable[[fx.Node, Any], Any] | None = None,
    run: Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    gradients: bool = False,
) -> tuple[Any, ...]:
    """Run the graph node by node, freeing each value after its last use.

    ``visit(node, value)`` is called with every value; its result, unless None, replaces the value.
    ``run(node, args, kwargs)``, if given, computes the node instead of ``call``.
    ``tensors``: equal tensors to read instead of the network's, by name, as ``channels_last`` makes them.
    ``gradients``: whether results have gradients for ``tensors``.
    """
    last: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(network.graph.nodes):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                last.setdefault(node, []).append(source)
    values: dict[fx.Node, Any] = {}
    feed = iter(inputs)
    with torch.set_grad_enabled(gradients):
        for node in network.graph.nodes:
            if node.op == "placeholder":
                value = next(feed)
            elif node.op == "get_attr":
                given = tensors.get(str(node.target)) if tensors else None
                value = network.tensor(node) if given is None else given
            elif node.op == "output":
                return tuple(map_arg(node.args[0], lambda n: values[n]))
            else:
                args = map_arg(node.args, lambda n: values[n])
                kwargs = map_arg(node.kwargs, lambda n: values[n])
                value = (run or call)(node, args, kwargs)
            if visit is not None:
                changed = visit(node, value)
                value = value if changed is None else changed
            values[node] = value
            for dead in last.get(node, ()):
                values.pop(dead, None)
    raise AssertionError("a graph without an output node")


def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute a node's operator; a view copies if the values lie in another layout than in the trace."""
    target: Any = aten.reshape.default if node.target is aten.view.default else node.target
    return target(*args, **kwargs)


def users_through(node: fx.Node, transparent: Iterable[Any]) -> Iterator[fx.Node]:
    """The consumers of a node's value, looking through ``transparent`` operators."""
    passing = set(transparent)
    for user in node.users:
        if user.op == "call_function" and user.target in passing:
            yield from users_through(user, passing)
        else:
            yield user
