"""Capture a model as a Network with torch.export; nothing is folded or silently omitted."""

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from tersor.errors import CaptureError
from tersor.network.example import check_example, lacks_batch, no_batch
from tersor.network.explain import check_finite, explained, refuse_torchscript, summary, where
from tersor.network.export import Free, check_free, export, freed, parameters_of, without_cache
from tersor.network.free_batch import agrees, free_batch, repeated
from tersor.network.network import Network, finish, op_name, weight_node
from tersor.network.signature import Signature
from tersor.network.verify import verify
from tersor.process import quiet
from tersor.task import Arguments
from tersor.words import said

_PASSING = {"detach", "alias", "lift_fresh_copy"}
_VIEWS = set("view reshape slice select transpose permute unsqueeze squeeze expand flatten split chunk".split())
_CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"}


def capture(
    model: nn.Module, example: Arguments, dynamic: Mapping[str, Mapping[int, str]] | None = None
) -> Network:
    """Capture a model as a Network with a dynamic batch; the model is not changed.

    Args:
        dynamic: dimensions that vary besides the batch, as in ``Task``.

    An example with a batch of 1 is doubled, since torch.export would treat 1 as a constant. If the model's own code
    fixes the batch, the Network's ``notes`` say so.

    Raises:
        CaptureError: the model cannot be captured; the message gives the offending line and the remedy. Or the model
            is of TorchScript, cannot run its example, or holds parameters that are not finite.

    >>> net = capture(nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval(), (torch.zeros(1, 4),))
    >>> [op_name(n) for n in net.operators()]
    ['linear', 'relu']
    >>> net(torch.ones(5, 4)).shape
    torch.Size([5, 2])
    """
    refuse_torchscript(model)
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise CaptureError(f"the model is in training mode ({training[0]}): call model.eval() before compressing it")
    half = [n for n, p in model.named_parameters() if p.is_floating_point() and p.dtype != torch.float32]
    if half:
        raise CaptureError(
            f"the parameter {half[0]} is {model.get_parameter(half[0]).dtype}; Tersor needs float32: call "
            "model.float(), and pass the example and the data in float32"
        )
    names = tuple(example) if isinstance(example, Mapping) else ()
    values = tuple(example.values()) if isinstance(example, Mapping) else tuple(example)
    # A model may write into its input, and an input that requires gradients cannot be stored as a constant.
    values = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), values)
    free = dict(dynamic or {})
    check_free(free, parameters_of(model, values, names), values)
    check_example(model, values, names)
    return check_finite(verify(_with_dynamic_batch(model, values, names, free), "capture", CaptureError), model)


def _with_dynamic_batch(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...], free: Free) -> Network:
    """A network with a dynamic batch, if the model's code allows it."""
    doubled = tuple(_double(v) for v in values)
    try:
        return _trace(model, doubled, names, True, free)
    except CaptureError:
        raise
    except Exception as error:  # torch.export raises many exception types
        first = error
    if lacks_batch(model, values, names):
        raise no_batch(model, values, names)
    try:
        network = None if free else _free_fixed_batch(model, values, names)
        if network is not None:
            return network
        note = said(
            "the batch size is fixed to the example's, since the model's own code fixes it: {reason}",
            reason=summary(first),
        )
        return _trace(model, values, names, False, free, (note,))
    except CaptureError:
        raise
    except Exception as error:
        raise explained(error, model) from error


def _trace(
    model: nn.Module,
    values: tuple[Any, ...],
    names: tuple[str, ...],
    dynamic: bool,
    free: Free,
    notes: tuple[str, ...] = (),
) -> Network:
    program, signature = export(model, values, names, dynamic, free)
    if any(_writes_through_a_view(n) for n in program.graph.nodes):
        with quiet():
            program = program.run_decompositions({})
    added = without_cache(model, values, names)
    if added:
        notes = (*notes, said("captured with use_cache=False: it returns no key-value cache"))
    network = _network(program, (*values, *added.values()), names, notes, signature)
    return _add_titles(replace(network, dynamic_batch=dynamic, free=freed(network, values, signature, free)))


def _free_fixed_batch(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> Network | None:
    """Free a batch size that the code fixes, by comparing traces with 2 and 3 samples, or None if that fails."""
    two, three = (_trace(model, repeated(values, n), names, False, {}) for n in (2, 3))
    network = free_batch(two, three)
    if network is None:
        return None
    network = replace(network, dynamic_batch=True)
    return network if agrees(network, model, values, names) else None


def _double(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.ndim and t.shape[0] == 1 else t, value)


def _network(
    program: Any, values: tuple[Any, ...], names: tuple[str, ...], notes: tuple[str, ...], signature: Signature
) -> Network:
    """Convert the exported program to a plain graph: weights as get_attr nodes, inputs and outputs flat."""
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    tensors: dict[str, Tensor] = {}
    specs = iter(program.graph_signature.input_specs)
    leaves = iter(pytree.tree_leaves(values))
    inputs: list[str] = []
    example: list[Tensor] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            if spec.kind.name != "USER_INPUT":
                env[node] = _weight(program, spec, graph, tensors)
            elif isinstance(value := next(leaves), Tensor):
                env[node] = graph.placeholder(node.name)
                inputs.append(node.name)
                example.append(value)
            else:
                env[node] = value
        elif node.op == "call_function":
            _copy_call(node, graph, env)
        elif node.op == "output":
            kept = [s.kind.name == "USER_OUTPUT" for s in program.graph_signature.output_specs]
            results = [env[r] for r, keep in zip(node.args[0], kept, strict=True) if keep and isinstance(r, fx.Node)]
            distinct = list(dict.fromkeys(results))
            graph.output(tuple(distinct))
            outputs = signature.outputs.numbered([distinct.index(r) for r in results])
            signature = replace(signature, outputs=outputs)
        else:
            raise CaptureError(
                f"the model uses data-dependent control flow ({node.op} {node.target}): move it out of the "
                "model, or compress the part without it"
            )
        if isinstance(env.get(node), fx.Node) and "val" in node.meta:
            env[node].meta.setdefault("val", node.meta["val"])
    module = fx.GraphModule(tensors, graph)
    keyed = bool(names) and len(names) == len(inputs)
    input_names, output_names = names if keyed else tuple(inputs), signature.outputs.names()
    return finish(Network(module, input_names, output_names, tuple(example), keyed, True, notes, signature))


def _weight(program: Any, spec: Any, graph: fx.Graph, tensors: dict[str, Tensor]) -> fx.Node:
    target = str(spec.target)
    value = program.state_dict[target] if target in program.state_dict else program.constants[target]
    if not isinstance(value, Tensor):
        raise CaptureError(f"the graph reads {target}, a {type(value).__name__}, not a tensor: Tersor cannot save it")
    # Tied weights stay tied: each tensor has one name.
    for name, known in tensors.items():
        if known.data_ptr() == value.data_ptr() and known.shape == value.shape and value.numel():
            return graph.get_attr(name)
    tensors[target] = value.detach()
    return graph.get_attr(target)


def _copy_call(node: fx.Node, graph: fx.Graph, env: dict[fx.Node, Any]) -> None:
    name = op_name(node)
    if name in _CHECKS:
        return
    if name in _PASSING and node.args:
        env[node] = env[node.args[0]]  # type: ignore[index]
        return
    if _native_batch_norm(node, graph, env):
        return
    if "higher_order" in str(getattr(node.target, "namespace", "")):
        raise CaptureError(
            f"the model uses {node.target} (control flow or a wrapped region) at {where(node)}, but Tersor captures "
            "plain operators only: move it out of the model, or compress the part without it"
        )
    lookup = env.__getitem__
    in_place = _mutates(node)
    target: Any = node.target
    if in_place:
        target = getattr(getattr(torch.ops.aten, name), target._overloadname)
    arguments, keywords = map_arg(node.args, lookup), map_arg(node.kwargs, lookup)
    copied = graph.create_node("call_function", target, arguments, keywords, node.name.rstrip("_"))
    copied.meta["path"] = _path(node)
    if in_place:
        # Later readers of the overwritten value read the new one.
        for key, value in env.items():
            if value is arguments[0]:
                env[key] = copied
    env[node] = copied


def _path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable and schema.name.endswith("_"))


def _writes_through_a_view(node: fx.Node) -> bool:
    """Whether an in-place write's target shares memory with another value, which needs functionalization."""
    if node.op != "call_function" or not _mutates(node):
        return getattr(getattr(node.target, "_schema", None), "is_mutable", False) and not _mutates(node)
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return True
    related = [source, *source.users]
    return any(op_name(n) in _VIEWS for n in related if n.op == "call_function" and n is not node)


def _native_batch_norm(node: fx.Node, graph: fx.Graph, env: dict[fx.Node, Any]) -> bool:
    """Convert a functionalized BatchNorm back; returns True if ``node`` was part of one."""
    if node.target is operator.getitem and node.args[0] in env and node.args[1] == 0:
        source = env[node.args[0]]  # type: ignore[index]
        if isinstance(source, fx.Node) and source.target is torch.ops.aten.batch_norm.default:
            env[node] = source
            return True
    if node.target is not torch.ops.aten._native_batch_norm_legit_no_training.default:
        return False
    x, weight, bias, mean, var, momentum, eps = map_arg(node.args, env.__getitem__)
    arguments = (x, weight, bias, mean, var, False, momentum, eps, False)
    env[node] = graph.create_node("call_function", torch.ops.aten.batch_norm.default, arguments, {}, "batch_norm")
    env[node].meta["path"] = _path(node)
    if "val" in node.meta:
        env[node].meta["val"] = node.meta["val"][0]  # the other results are statistics that nothing reads
    return True


def _add_titles(network: Network) -> Network:
    """Give every operator a readable name; duplicates after the first get a number."""
    used: Counter[str] = Counter()
    names: list[str] = []
    for node in network.operators():
        weight, path = weight_node(node), node.meta.get("path", "")
        owner = str(weight.target).removesuffix(".weight") if weight is not None else ""
        if weight is not None and str(weight.target) != owner:
            # A reader of another layer's weight keeps its own name.
            name = path if used[owner] and path else owner
        else:
            name = f"{path}.{op_name(node)}" if path else op_name(node)
        used[name] += 1
        names.append(name)
    taken, count = set(names), Counter[str]()
    for node, name in zip(network.operators(), names, strict=True):
        count[name] += 1
        node.meta["title"] = name if count[name] == 1 else f"{name}_{count[name]}"
        while count[name] > 1 and node.meta["title"] in taken:
            count[name] += 1
            node.meta["title"] = f"{name}_{count[name]}"
        taken.add(node.meta["title"])
    return network
