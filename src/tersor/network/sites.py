"""Planning: choose a QuantSpec for every edge and weight. Options × Policy × graph → Plan; no data is run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx

from tersor.errors import RecipeError
from tersor.network.network import CONVOLUTIONS, LINEARS, TRANSPOSED, Network, groups_of, op_name, title, weight_node
from tersor.network.planned import PlannedLayer, Site, planned_layers
from tersor.network.roles import INTEGER, WEIGHTED, float_output, is_float_tensor, reads_floats, roles_of
from tersor.numerics.spec import Granularity, QuantSpec
from tersor.policy import Fixed, Own, Policy, Shared
from tersor.recipe import Decision, Quantization, Quantize, decide, with_names
from tersor.terminal import Shown
from tersor.words import said


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """Every site and every operator, in graph order.

    Args:
        runtime_group: the number of adjacent values that share a scale in run-time quantization; 0: a scale per token.
        raw: operators that read values before their quantizers, by graph name.

    Raises:
        RecipeError: two sites of one kind have the same name or node, no site measures the range of a group of
            activations, or an operator is planned twice.
    """

    sites: tuple[Site, ...]
    layers: tuple[PlannedLayer, ...]
    runtime_group: int = 0
    raw: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for what, keys in (
            ("the name", [(s.name, s.kind) for s in self.sites]),
            ("the node", [(s.node, s.kind) for s in self.sites]),
        ):
            for (name, kind), count in Counter(keys).items():
                if count > 1:
                    raise RecipeError(f"{count} sites of kind {kind} have {what} {name}; it must be unique")
        for node, count in Counter(layer.node for layer in self.layers).items():
            if count > 1:
                raise RecipeError(f"the operator {node} is planned {count} times")
        measured = {s.group for s in self.activations() if s.source}
        for site in self.activations():
            if site.group not in measured:
                raise RecipeError(f"{site.name}: no site of its group {site.group} measures the group's range")
        if self.runtime_group < 0:
            raise RecipeError(f"runtime_group is {self.runtime_group}; it must be at least 0")

    def activations(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.kind == "activation")

    def sources(self) -> tuple[str, ...]:
        """The graph names of the values whose statistics determine the ranges."""
        return tuple(dict.fromkeys(s.node for s in self.activations() if s.source))

    def weights(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.kind == "weight")

    def runtime(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.kind == "runtime")


def plan(network: Network, step: Quantize, policy: Policy, floats: Mapping[str, str] | None = None) -> Plan:
    """Decide for every edge and weight whether and how it is quantized.

    Args:
        floats: operators that must stay in float, by graph name, with the reason; of layers only the output.

    Raises:
        RecipeError: a rule matches no layer (naming the nearest), or the engine does not support a part of the recipe.
    """
    operators = network.operators()
    weighted = [title(n) for n in operators if weight_node(n) is not None]
    step = with_names(step, [(title(n), op_name(n)) for n in operators], weighted)
    decisions = {n: _decision(n, step, policy) for n in operators}
    for node in operators:
        if floats and node.name in floats:
            why = floats[node.name]
            kept = {"float_output": why} if weight_node(node) is not None else {"keep": "fp32", "reason": why}
            decisions[node] = replace(decisions[node], **kept)
    roles = roles_of(operators, decisions, policy)
    wanted = _wanted(roles, decisions, policy)
    sites = _activation_sites(network, roles, wanted, decisions, step, policy)
    sites += _layer_sites(operators, roles, decisions, policy)
    order = {n.name: k for k, n in enumerate(network.graph.nodes)}
    sites.sort(key=lambda s: (order[s.node], s.kind == "activation"))
    layers = planned_layers(operators, roles, decisions, sites, policy)
    raw = frozenset(n.name for n in operators if reads_floats(n, decisions))
    return Plan(tuple(sites), tuple(layers), policy.runtime.group, raw)


def _decision(node: fx.Node, step: Quantize, policy: Policy) -> Decision:
    """The recipe's decision; a layer with half-precision weights and float activations is kept in that precision."""
    weighted = weight_node(node) is not None
    found = decide(title(node), op_name(node), step, policy.weight if weighted else None)
    format = found.weights.format
    between = op_name(node) in policy.operators("arithmetic", "average")
    if step.scope == "layers" and between and not found.named:
        return replace(found, keep="fp32", reason=said("the recipe quantizes layers only"))
    if weighted and found.keep is None and found.activations.when == "never" and format in ("fp32", "fp16", "bf16"):
        return replace(found, keep=format, spec=None, reason=said("the recipe asks for {format}", format=format))
    return found


def _wanted(roles: dict[fx.Node, str], decisions: Mapping[fx.Node, Decision], policy: Policy) -> set[fx.Node]:
    """The values that integer operators read or must output quantized: each gets one quantizer."""
    wanted: set[fx.Node] = set()
    for node, role in roles.items():
        if role in ("layer", "average"):
            sources = [node.args[0]]
        elif role == "arithmetic":
            sources = _arithmetic_inputs(node, roles, policy)
        else:
            sources = []
        for source in sources:
            if isinstance(source, fx.Node):
                _want(source, roles, wanted, policy)
        needs = role == "layer" and op_name(node) in policy.needs_output_quantizer
        if needs and not float_output(node, role, decisions, policy):
            wanted.add(_behind_activation(node, roles))
        # Engines round an average of integers to integers, even if a float operator reads it.
        if role in ("average", "arithmetic") and isinstance(_output(node, roles, policy), Own):
            wanted.add(_behind_activation(node, roles))
    return {n for n in wanted if is_float_tensor(n)}


def _output(node: fx.Node, roles: dict[fx.Node, str], policy: Policy) -> Own | Shared | Fixed | None:
    """The engine's requirement on an operator's output, for the operator's role."""
    row = policy.row(roles[node], op_name(node)) if node in roles else None
    return None if row is None else row.output


def _arithmetic_inputs(node: fx.Node, roles: dict[fx.Node, str], policy: Policy) -> list[fx.Node]:
    """The operands to quantize; for a sum, possibly only the shortcut."""
    inputs = [a for a in node.args[:2] if isinstance(a, fx.Node)]
    row = policy.row("arithmetic", op_name(node))
    bare = _behind_activation(node, roles) is node
    if row is None or row.shortcut_only not in ("always", *(["bare"] if bare else [])):
        return inputs
    # A layer that only this sum reads is fused with it; the other branch is the shortcut.
    fusable = [a for a in inputs if roles.get(a) == "layer" and len(a.users) == 1]
    return [a for a in inputs if a is not fusable[-1]] if fusable else inputs


def _behind_activation(node: fx.Node, roles: dict[fx.Node, str]) -> fx.Node:
    users = list(node.users)
    return users[0] if len(users) == 1 and roles.get(users[0]) == "fused" else node


def _want(node: fx.Node, roles: dict[fx.Node, str], wanted: set[fx.Node], policy: Policy) -> None:
    """Quantize a value; after a transparent operator, quantize the operator's inputs."""
    if node.op == "get_attr" or node in wanted:
        return
    if roles.get(node) == "transparent":
        if isinstance(_output(node, roles, policy), Own) and is_float_tensor(node):
            wanted.add(node)
        for source in node.all_input_nodes:
            if source.op != "get_attr" and "val" in source.meta:
                _want(source, roles, wanted, policy)
    else:
        wanted.add(node)


def _activation_sites(
    network: Network,
    roles: dict[fx.Node, str],
    wanted: set[fx.Node],
    decisions: Mapping[fx.Node, Decision],
    step: Quantize,
    policy: Policy,
) -> list[Site]:
    groups = _shared_groups(network, roles, policy)
    sites = []
    for node in network.graph.nodes:
        if node not in wanted:
            continue
        choice = _asked(node, roles, decisions, step, policy)
        spec = choice.spec(policy.activation)
        name = title(node) if node.op == "call_function" else str(node.target)
        policy.check_activation(name, spec, {op_name(u) for u in node.users if roles.get(u) in INTEGER})
        source = not isinstance(_output(node, roles, policy), Shared)
        fixed = policy.fixed_range(op_name(node), spec) if source and node.op == "call_function" else None
        readers = ", ".join(sorted({op_name(u) for u in node.users if u.op == "call_function"})) or "the output"
        reason, group = said("read by {readers}", readers=readers), groups[node]
        sites.append(Site(name, node.name, "activation", spec, choice, group, source, reason, fixed=fixed))
    return sites


def _asked(
    node: fx.Node, roles: dict[fx.Node, str], decisions: Mapping[fx.Node, Decision], step: Quantize, policy: Policy
) -> Quantization:
    """How a value is quantized: by the rules on its readers, and if they differ by the one with the most bits.

    Without such a rule, the rule on the operator that computes the value applies, except for a layer, whose rule
    applies to its input.
    """

    def choices(value: fx.Node) -> list[Quantization]:
        found = []
        for user in value.users:
            reader = decisions.get(user)
            if reader and "activations" in reader.named and reader.activations.when == "static":
                found.append(reader.activations)
            elif roles.get(user) == "transparent":
                found += choices(user)
        return found

    made = node in decisions and roles.get(node) not in WEIGHTED
    own = decisions[node].activations if made else step.activations
    return max(choices(node) or [own], key=lambda q: q.spec(policy.activation).format.bits)


def _shared_groups(network: Network, roles: dict[fx.Node, str], policy: Policy) -> dict[fx.Node, str]:
    """Groups of values that must share their parameters: inputs and output of operators whose output is ``Shared``."""
    parent: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while parent.get(node, node) is not node:
            node = parent[node]
        return node

    for node in roles:
        if not isinstance(_output(node, roles, policy), Shared):
            continue
        for source in node.all_input_nodes:
            if source.op != "get_attr" and "val" in source.meta:
                parent[find(source)] = find(node)
    return {n: find(n).name for n in network.graph.nodes}


def _layer_sites(
    operators: list[fx.Node], roles: dict[fx.Node, str], decisions: Mapping[fx.Node, Decision], policy: Policy
) -> list[Site]:
    sites = []
    for node in operators:
        if roles[node] not in WEIGHTED:
            continue
        wanted = decisions[node].weights
        spec = wanted.spec(policy.weight)
        if node.target in TRANSPOSED and spec.granularity == Granularity.channel(0):
            axis = Granularity.channel(1) if groups_of(node) == 1 else Granularity.tensor()
            spec = QuantSpec(spec.format, axis, spec.symmetric, spec.rounding, spec.scale_dtype)
        if roles[node] == "runtime":
            asked = decisions[node].activations.spec(policy.runtime.default)
            policy.check_runtime(title(node), op_name(node), asked, spec)
        policy.check_weight(title(node), roles[node], op_name(node), spec)
        weight = weight_node(node)
        assert weight is not None
        reason = said("weight of {op}", op=op_name(node))
        solver = wanted.choice()
        if solver.needs and node.target not in (*CONVOLUTIONS, *LINEARS):
            reason += "; " + said("rounded to nearest: no matrix product that {solver} could solve", solver=solver.name)
            wanted = wanted.without_data()
        sites.append(Site(title(node), node.name, "weight", spec, wanted, str(weight.target), True, reason))
        if roles[node] == "runtime":
            wanted = decisions[node].activations
            spec = wanted.spec(policy.runtime.default)
            reason = said("input of {op}, quantized at run time", op=op_name(node))
            sites.append(Site(title(node), node.name, "runtime", spec, wanted, node.name, True, reason))
    return sites
