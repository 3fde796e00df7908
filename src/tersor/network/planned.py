"""The parts of a plan: the sites where values are quantized, and the precision of every operator with its reason."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from tersor.errors import RecipeError
from tersor.network.network import EMBEDDINGS, op_name, title, weight_node
from tersor.network.rewrites.unroll import RECURRENT, why_not
from tersor.network.roles import WEIGHTED, float_output, is_float_tensor
from tersor.numerics.spec import QuantSpec
from tersor.policy import Policy
from tersor.recipe import Decision, Quantization
from tersor.tables import name_of
from tersor.words import said

# What a site quantizes: an operator's value, a layer's weight, or a layer's input at run time.
KINDS = ("activation", "weight", "runtime")


@dataclass(frozen=True)
class Site:
    """One place where values are quantized.

    Args:
        name: the readable name of the layer or value; unique within its kind.
        node: the graph name of the operator whose value (activation), weight, or input (runtime) this is.
        kind: ``activation``, ``weight``, or ``runtime``: a layer's input, quantized at run time.
        spec: the QuantSpec.
        asked: the recipe's options for the site: the estimator of the range, or the solver of the weight.
        group: sites of one group share their parameters; ``source``: whether this site measures the group's range.
        reason: why the site exists.
        fixed: the range of an activation's codes, if it is known without data.

    Raises:
        RecipeError: a kind that is not in KINDS, a spec that is not a QuantSpec, or an empty name.

    >>> Site("fc", "linear", "wieght", QuantSpec("int8"), Quantization(), "fc.weight")
    Traceback (most recent call last):
    tersor.errors.RecipeError: the site fc has the unknown kind 'wieght'; kinds are activation, weight, runtime
    """

    name: str
    node: str
    kind: str
    spec: QuantSpec
    asked: Quantization
    group: str
    source: bool = True
    reason: str = ""
    fixed: tuple[float, float] | None = None

    @property
    def range(self) -> str:
        """The name of the site's range estimator."""
        return name_of(self.asked.range)

    @property
    def solver(self) -> str:
        """The name of the weight's solver."""
        return name_of(self.asked.solver)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecipeError(f"the site {self.name} has the unknown kind {self.kind!r}; kinds are {', '.join(KINDS)}")
        if not isinstance(self.spec, QuantSpec):
            raise RecipeError(f"the site {self.name} has the spec {self.spec!r}, which is not a QuantSpec")
        for field in ("name", "node", "group"):
            if not getattr(self, field):
                raise RecipeError(f"the site {self.name or self.node!r} has no {field}")


@dataclass(frozen=True)
class PlannedLayer:
    """One operator with the planned precision of its arithmetic, the reason, and the stored format of its weight."""

    name: str
    node: str
    op: str
    planned: str
    reason: str
    weight_format: str | None = None


def planned_layers(
    operators: list[fx.Node],
    roles: dict[fx.Node, str],
    decisions: Mapping[fx.Node, Decision],
    sites: list[Site],
    policy: Policy,
) -> list[PlannedLayer]:
    """Every operator that computes, with its planned precision and the reason."""
    weights = {s.node: s for s in sites if s.kind == "weight"}
    values = {s.node: s for s in sites if s.kind == "activation"}
    layers = []
    for node in operators:
        role, decision, name = roles[node], decisions[node], op_name(node)
        weight_format: str | None = None
        if role in WEIGHTED:
            site = weights[node.name]
            planned, reason = _precision(site.spec), site.reason
            if role == "stored":
                planned, reason = "fp32", _stored(node, site, decision, policy)
            weight_format = str(site.spec.format.name)
            if role == "layer" and float_output(node, role, decisions, policy):
                planned = "fp32"
                why = decision.float_output or said("nothing reads it in integers")
                reason = said(
                    "its output stays float ({why}), and {engine} computes integer {op} to codes only",
                    why=why, engine=policy.engine, op=name,
                )
        elif role in ("arithmetic", "average"):
            planned, reason = "int8", said("{op} of quantized values", op=name)
        elif role == "fused":
            planned, reason = "fused", said("part of the layer before it")
        elif role == "transparent":
            if not name.startswith("max_pool"):
                continue
            if _moves_integers(node, roles, values):
                planned, reason = "int8", said("keeps its input's parameters")
            else:
                planned, reason = "fp32", said("its input is float")
        elif decision.keep in ("fp16", "bf16"):
            if not _gives_floats(node):
                continue
            planned, reason, weight_format = _half(node, decision, policy)
        elif not is_float_tensor(node) and name not in RECURRENT:
            continue
        elif decision.keep is not None:
            planned, reason = decision.keep, decision.reason
        else:
            planned, reason = "fp32", said("{engine}: no integer {op} here", engine=policy.engine, op=name)
            if any(float_output(node, each, decisions, policy) for each in ("arithmetic", "average")):
                reason = said("its output stays float: nothing reads it in integers")
            if name in policy.layers and decision.activations.when == "dynamic":
                reason = said("the activations of a convolution are quantized by a static recipe")
            if name in RECURRENT and (hindrance := why_not(node)):
                reason = said("not unrolled: {reason}", reason=hindrance)
        if role in ("layer", "arithmetic", "average", "transparent") and planned != "fp32":
            planned, reason = _widened(node, planned, reason, roles, values, policy)
        if weight_format is None and weight_node(node) is not None:
            weight_format = "fp32" if name in policy.layers else None
        layers.append(PlannedLayer(title(node), node.name, name, planned, reason, weight_format))
    return layers


def _stored(node: fx.Node, site: Site, decision: Decision, policy: Policy) -> str:
    """Why a layer with a quantized weight computes in float."""
    reasons = [said("{reason}, stored in {format}", reason=site.reason, format=site.spec.format.name)]
    reasons.append(said("arithmetic stays float"))
    if decision.activations.when == "dynamic" and node.target not in EMBEDDINGS:
        group = {"count": policy.runtime.group, "engine": policy.engine}
        reasons.append(said("fewer than the {count} inputs that {engine} quantizes together", **group))
    return "; ".join(reasons)


def _gives_floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(v, Tensor) and v.is_floating_point() for v in parts)


def _half(node: fx.Node, decision: Decision, policy: Policy) -> tuple[str, str, str | None]:
    """The plan of an operator kept in half precision: (planned, reason, format of the weight).

    Every engine stores a layer's weight in half precision. A rule that keeps the layer applies to the arithmetic too;
    the format of the weights alone does not.
    """
    format, reason = str(decision.keep), decision.reason
    held = format if weight_node(node) is not None else None
    asked = "keep" in decision.named and node.target not in EMBEDDINGS
    if held and not (asked and format in policy.half_arithmetic):
        return "fp32", said("{reason}: stored in {format}, computed in float", reason=reason, format=format), held
    if not is_float_tensor(node):
        name = op_name(node)
        raise RecipeError(f"{title(node)}: {name} returns several values, so it cannot be kept in {format}; keep fp32")
    policy.check_half(title(node), op_name(node), format)
    return format, reason, held


def _widened(
    node: fx.Node, planned: str, reason: str, roles: dict[fx.Node, str], values: Mapping[str, Site], policy: Policy
) -> tuple[str, str]:
    """The plan of an integer operator, adjusted to the codes around it: int16, or float if the engine has no kernel."""
    sites = [*_read(node, roles, values)]
    needs = policy.needs_output_quantizer
    if op_name(node) in needs or (needs and roles[node] in ("arithmetic", "average")):
        sites += [values[n.name] for n in (node, *node.users) if n.name in values and n is not node.args[0]]
    for site in sites:
        if site.spec.format.name in policy.rounded:
            return "fp32", said(
                "{name} has {spec} codes, with which {engine} computes in float",
                name=site.name, spec=site.spec.format, engine=policy.engine,
            )
    wide = any(s.spec.format.bits == 16 and s.spec.format.kind == "int" for s in sites)
    return ("int16", reason) if wide else (planned, reason)


def _read(node: fx.Node, roles: dict[fx.Node, str], values: Mapping[str, Site]) -> Iterator[Site]:
    """The quantized values that an operator reads, looking through transparent operators."""
    for source in node.all_input_nodes:
        if source.name in values:
            yield values[source.name]
        elif roles.get(source) == "transparent":
            yield from _read(source, roles, values)


def _moves_integers(node: fx.Node, roles: dict[fx.Node, str], values: Mapping[str, Site]) -> bool:
    """Whether all inputs of a transparent operator are quantized, looking through other transparent operators."""
    return all(
        source.name in values or (roles.get(source) == "transparent" and _moves_integers(source, roles, values))
        for source in node.all_input_nodes
        if "val" in source.meta
    )


def _precision(spec: QuantSpec) -> str:
    name = str(spec.format.name)
    if name.startswith("fp8"):
        return "fp8"
    if name in ("fp16", "bf16", "fp32"):
        return name
    return "int16" if spec.format.bits == 16 else "int8" if spec.format.bits == 8 else "int4"
