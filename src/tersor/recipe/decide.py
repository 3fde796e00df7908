"""The decision that a step's options and rules make for one layer: the only place where rules are read."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from typing import Any

from tersor.errors import RecipeError, TersorError
from tersor.numerics.spec import QuantSpec
from tersor.recipe.quantization import Quantization
from tersor.recipe.rules import Rule
from tersor.recipe.steps.quantize import Quantize
from tersor.solvers import Sparsity, joint_choice
from tersor.tables import Named, described
from tersor.words import said

Fits = Callable[[QuantSpec | None, Sparsity | None], QuantSpec | None]


@dataclass(frozen=True)
class Decision:
    """What to do with one layer or operator.

    Args:
        keep: the float format that a rule keeps it in, or None.
        spec: how its weight is quantized; None: the weight stays float, or there is no weight.
        weights, activations: the step's options, overridden by those of the rules.
        sparsity, pruner: which of its weights become zero, if any, and the pruner that chooses them.
        named: the keys that rules name for it; rules: those rules.
        reason: in words.
        float_output: the reason why its output must not be rounded to codes, or None.
    """

    keep: str | None
    spec: QuantSpec | None
    weights: Quantization
    activations: Quantization
    sparsity: Sparsity | None
    pruner: Named
    named: frozenset[str]
    rules: tuple[Rule, ...]
    reason: str
    float_output: str | None = None


def decide(
    name: str, op: str, step: Quantize, default: QuantSpec | None, fits: Fits | None = None, *, opt_in: bool = False
) -> Decision:
    """Make the decision for one layer or operator.

    Args:
        name, op: of the layer, as rules match them.
        step: with rules that ``with_names`` has prepared.
        default: the meaning of the format ``auto`` for a weight; None: there is no weight.
        fits: returns the spec as the weight will be stored; raises if the host cannot store or produce it, which
            ``fallback: float`` turns into a weight that stays float.
        opt_in: the weight stays as it is unless a rule names ``weights`` or ``sparsity`` for it.

    Raises:
        RecipeError: naming the layer, and the rule, if options contradict each other or do not fit.

    >>> step = Quantize(weights=Quantization(solver="gptq"), rules=(Rule(layer="b*", weights={"format": "int4"}),))
    >>> decide("b1", "linear", step, QuantSpec("int8", "channel")).reason
    'int4 per channel symmetric, gptq'
    """
    options, named, rules = _options(name, op, step)
    keep, weights, activations = options["keep"], options["weights"], options["activations"]

    def decided(spec: QuantSpec | None, sparsity: Sparsity | None, reason: str) -> Decision:
        return Decision(keep, spec, weights, activations, sparsity, options["pruner"], named, tuple(rules), reason)

    try:
        weights.check_weights()
        activations.check_activations()
    except RecipeError as error:
        by = " and ".join(f"the rule ({rule})" for rule in rules)
        raise RecipeError(f"{name}: {error}{f', by {by} and what it inherits' if rules else ''}") from error
    if keep is not None:
        return decided(None, None, said("kept by the rule ({rule})", rule=rules[-1]))
    asked = named if opt_in else {"weights", "sparsity"}
    text = options["sparsity"] if "sparsity" in asked else None
    sparsity = None if text is None else Sparsity.parse(text)
    # Sparsity alone requires no format of the weights.
    unasked = "weights" not in asked or weights.format == "fp32" or (sparsity is not None and weights.format == "auto")
    spec = None if default is None or unasked else weights.spec(default)
    if spec and sparsity:
        try:
            joint_choice(options["pruner"], sparsity, weights.solver, weights.range)
        except RecipeError as error:
            raise RecipeError(f"{name}: {error}; or leave its `weights` out, which then stay float") from error
    try:
        spec = fits(spec, sparsity) if fits is not None else spec
    except TersorError as error:
        if step.fallback == "error":
            raise RecipeError(f"{error}; or let such layers stay float: `fallback: float` in the recipe") from error
        # Remedies matter only to those who chose an error; without the name, similar layers share one reason.
        why = str(error).removeprefix("layer ").removeprefix(name).removeprefix(".weight").removeprefix(":")
        return decided(None, None, said(
            "stays float by `fallback: float`: {why}",
            why=why.split(": ")[0].split("; ")[0].strip(),
        ))
    return decided(spec, sparsity, _how(spec, sparsity, weights.solver, options["pruner"]))


# How a spec and its solver read, as `_how` puts them.
SPECS = (
    said("{format} per {granularity} symmetric, {solver}"),
    said("{format} per {granularity} asymmetric, {solver}"),
)


def _how(spec: QuantSpec | None, sparsity: Sparsity | None, solver: Named, pruner: Named) -> str:
    weights = "" if spec is None else f"{spec}, {described(solver)}"
    if sparsity is None:
        return weights or said("stays float: the recipe asks for it")
    if spec is None:
        return said("{sparsity} zeros, {pruner}, the rest float", sparsity=sparsity, pruner=described(pruner))
    return said("{sparsity} zeros, {pruner}, {weights}", sparsity=sparsity, pruner=described(pruner), weights=weights)


def with_names(step: Quantize, layers: Sequence[tuple[str, str]], weighted: Sequence[str]) -> Quantize:
    """The step with ``@first`` and ``@last`` of its rules replaced by names.

    Args:
        layers: (name, operator type) of everything that rules may match.
        weighted: names of the layers with weights, in order of execution.

    Raises:
        RecipeError: for a rule that matches nothing, with the nearest names.

    >>> step = Quantize(rules=(Rule(layer="@last", keep="bf16"),))
    >>> with_names(step, [("stem", "conv2d"), ("head", "linear")], ["stem", "head"]).rules[0].layer
    'head'
    """
    ends = {"@first": escape(weighted[0]), "@last": escape(weighted[-1])} if weighted else {}
    rules = tuple(r.model_copy(update={"layer": ends[r.layer]}) if r.layer in ends else r for r in step.rules)
    for rule in rules:
        if any(rule.matches(*layer) for layer in layers):
            continue
        names = {name if rule.layer else op for name, op in layers}
        asked = (rule.layer or rule.op or "").replace("*", "")
        names |= {"@first", "@last"} if asked.startswith("@") else set()
        near = difflib.get_close_matches(asked, sorted(names), 3, 0.3)
        raise RecipeError(
            f"rule ({rule}) matches no layer of this network; nearest names: {', '.join(near) or 'none'}. "
            "`tersor inspect` lists them all"
        )
    return step.model_copy(update={"rules": rules})


def _options(name: str, op: str, step: Quantize) -> tuple[dict[str, Any], frozenset[str], list[Rule]]:
    """The step's options overridden by those of the matching rules, the keys that these name, and the rules."""
    own = {key: getattr(step, key) for key in ("weights", "activations", "sparsity", "pruner")}
    options: dict[str, Any] = {"keep": None, **own}
    named: set[str] = set()
    rules: list[Rule] = []
    for rule in step.rules:
        if not rule.matches(name, op):
            continue
        if rule.keep is not None:  # decides everything about the layer
            options, named, rules = {"keep": None, **own}, set(), []
        else:
            options["keep"] = None
            named.discard("keep")
            rules = [r for r in rules if r.keep is None]
        for key, value in rule.changes.items():
            options[key] = options[key].model_copy(update=value) if isinstance(value, dict) else value
            named.add(key)
        rules.append(rule)
    return options, frozenset(named), rules
