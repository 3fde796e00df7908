"""The role of each operator in an engine: layer, integer arithmetic, average, transparent operator, or float."""

from collections.abc import Mapping

from torch import Tensor, fx

from tersor.network.network import LINEARS, op_name, weight_node
from tersor.policy import ARITHMETIC, JOINS, Own, Policy
from tersor.recipe import Decision

_NORMS = ("layer_norm", "rms_norm", "native_layer_norm")
# The role of a layer, by when its input is quantized.
_LAYERS = {"static": "layer", "dynamic": "runtime", "never": "stored"}
WEIGHTED = tuple(_LAYERS.values())
# The roles that compute on calibrated codes.
INTEGER = ("layer", "arithmetic", "average")
# Operators that pass a residual stream on; a class token is selected from it.
_STREAM = frozenset(
    "add dropout cat expand slice select index_select transpose permute view reshape flatten unflatten squeeze "
    "unsqueeze contiguous clone roll pad".split()
)


def roles_of(operators: list[fx.Node], decisions: Mapping[fx.Node, Decision], policy: Policy) -> dict[fx.Node, str]:
    """The role of every operator: layer, runtime, stored, arithmetic, average, transparent, fused or float.

    A ``layer`` reads an input with a calibrated range, a ``runtime`` layer quantizes its input at run time, and a
    ``stored`` layer has only its weight quantized.
    """
    roles: dict[fx.Node, str] = {}
    normalised = _feeds_normalisation(operators)
    for node in operators:
        name, decision = op_name(node), decisions[node]
        when = decision.activations.when
        if name in policy.transparent and not (name in JOINS and decision.keep is not None):
            roles[node] = "transparent"
        elif decision.keep is not None or not is_float_tensor(node):
            roles[node] = "float"
        elif name == "embedding" and policy.row("stored", name) is not None and weight_node(node) is not None:
            roles[node] = "float" if when == "static" else "stored"
        elif name in policy.layers and weight_node(node) is not None:
            # Run-time ranges are for matrix products only: a convolution would compute one for every window.
            roles[node] = "float" if when == "dynamic" and node.target not in LINEARS else _LAYERS[when]
            if roles[node] == "runtime" and _left_in_float(node, decision.activations.format, policy):
                roles[node] = "stored"
        elif policy.row("arithmetic", name) is not None and node not in normalised and _both_activations(node):
            integer = any(_comes_from(a, roles) for a in node.all_input_nodes)
            integer = integer and not float_output(node, "arithmetic", decisions, policy)
            roles[node] = "arithmetic" if integer else "float"
        elif policy.row("average", name) is not None and _is_spatial(node):
            integer = _comes_from(node.all_input_nodes[0], roles)
            integer = integer and not float_output(node, "average", decisions, policy)
            roles[node] = "average" if integer else "float"
        elif policy.row("fused", name) is not None and _follows(node, roles):
            roles[node] = "fused"
        else:
            roles[node] = "float"
    return roles


def reads_floats(node: fx.Node, decisions: Mapping[fx.Node, Decision]) -> bool:
    """Whether a reader uses a value before its quantizer: the caller, and sums and joins kept in float."""
    kept = node in decisions and decisions[node].keep == "fp32" and op_name(node) in ARITHMETIC | JOINS
    return node.op == "output" or kept


def float_output(node: fx.Node, role: str, decisions: Mapping[fx.Node, Decision], policy: Policy) -> bool:
    """Whether an operator must output codes to compute in integers, but all readers of its value use floats."""
    row = policy.row(role, op_name(node))
    if row is None or not isinstance(row.output, Own):
        return False
    return decisions[node].float_output is not None or not _reads_codes(node, decisions, policy)


def _reads_codes(node: fx.Node, decisions: Mapping[fx.Node, Decision], policy: Policy) -> bool:
    passing = policy.transparent | policy.operators("fused")
    return any(
        _reads_codes(user, decisions, policy) if op_name(user) in passing else True
        for user in node.users
        if not reads_floats(user, decisions)
    )


def _left_in_float(node: fx.Node, format: str, policy: Policy) -> bool:
    """Whether a linear layer's input is narrower than the engine's run-time group."""
    width = int(node.args[0].meta["val"].shape[-1])  # type: ignore[union-attr]
    return width < policy.runtime.group and format == "auto"


def _both_activations(node: fx.Node) -> bool:
    inputs = [a for a in node.args[:2] if isinstance(a, fx.Node) and a.op != "get_attr"]
    values = [a.meta["val"] for a in inputs if is_float_tensor(a)]
    return len(values) == 2 and all(v.ndim for v in values) and inputs[0] is not inputs[1]


def _is_spatial(node: fx.Node) -> bool:
    """Whether an average runs over the dimensions after the channels, as in pooling."""
    if op_name(node) != "mean":
        return True
    value = node.all_input_nodes[0].meta.get("val")
    dims = node.args[1] if len(node.args) > 1 else None
    if not isinstance(value, Tensor) or not isinstance(dims, (list, tuple)):
        return False
    return sorted(int(d) % value.ndim for d in dims) == list(range(2, value.ndim))  # type: ignore[arg-type]


def _comes_from(node: fx.Node, roles: dict[fx.Node, str]) -> bool:
    """Whether a value results from integer arithmetic, looking through transparent and fused operators."""
    role = roles.get(node)
    if role in INTEGER:
        return True
    return role in ("transparent", "fused") and any(_comes_from(i, roles) for i in node.all_input_nodes)


def _follows(node: fx.Node, roles: dict[fx.Node, str]) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and roles.get(source) in ("layer", "arithmetic") and len(source.users) == 1


def _feeds_normalisation(operators: list[fx.Node]) -> set[fx.Node]:
    """Sums that a LayerNorm or RMSNorm reads: a residual stream, whose outliers exceed the range of 8 bits."""
    stream: set[fx.Node] = set()
    for node in reversed(operators):
        users = [u for u in node.users if u.op == "call_function"]
        normalised = any(op_name(u) in _NORMS or u in stream for u in users)
        if normalised and op_name(node) in _STREAM:
            stream.add(node)
    return stream


def is_float_tensor(node: fx.Node) -> bool:
    """Whether the node's value is one floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
