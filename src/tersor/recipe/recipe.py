"""What the user wants: a Recipe of Rules, as YAML or as Python."""

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from tersor.errors import RecipeError
from tersor.recipe.quantization import Quantization, Strict
from tersor.solvers.ask import PRUNERS
from tersor.tables import Named, checked, parsed


class Rule(Strict):
    """An exception for the layers whose name or operator type matches a glob; later rules win.

    Give ``layer`` (a glob on names as ``tersor inspect`` prints them; ``@first`` and ``@last`` are the first and the
    last layer with weights), ``op`` (a glob on operator types such as ``softmax`` or ``conv*``), or both. ``keep``
    leaves the layer in that float format; ``weights`` and ``activations`` (what it reads) replace the recipe's.
    """

    layer: str | None = None
    op: str | None = None
    keep: Literal["fp32", "fp16", "bf16"] | None = None
    weights: Quantization | None = None
    activations: Quantization | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Rule":
        if self.layer is None and self.op is None:
            raise ValueError("a rule needs `layer` or `op`, a glob on names or operator types")
        if self.keep is None and self.weights is None and self.activations is None:
            raise ValueError("a rule needs `keep`, `weights` or `activations`: it would change nothing")
        if self.keep is not None and (self.weights or self.activations):
            raise ValueError("`keep` leaves the layer in float, so it cannot also have `weights` or `activations`")
        return self

    def matches(self, layer: str, op: str) -> bool:
        """Whether the rule speaks of that layer."""
        return (self.layer is None or fnmatchcase(layer, self.layer)) and (self.op is None or fnmatchcase(op, self.op))

    def __str__(self) -> str:
        return ", ".join(f"{k}: {v}" for k, v in (("layer", self.layer), ("op", self.op)) if v is not None)


class Recipe(Strict):
    """What is to be done to a network.

    ``equalize`` is ``auto``: done where weights are per tensor, for which it was invented. ``smooth`` is ``auto``:
    done in Transformers whose activations are calibrated; ``smooth_alpha`` of the outliers' range goes to the
    weights, ``auto``: for each value as much as a trial on some of its rows finds best. ``fallback: float`` leaves
    a layer of a Hugging Face folder that cannot be solved or stored as asked in its float format, and says so in the
    report; ``error`` stops. There ``awq`` also scales input channels before weights are rounded (arXiv 2306.00978), and
    ``rotate`` turns the residual stream by a Hadamard matrix (arXiv 2404.00456), both folded into the weights; and
    ``sparsity`` (``50%``, ``50% per row``, ``2:4``) makes weights zero, by ``pruner``; with weights that are quantized
    too, in one sweep (arXiv 2301.00774).

    >>> recipe = Recipe(weights=Quantization(format="int4", granularity="group:32"))
    >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
    True
    """

    name: str = "custom"
    weights: Quantization = Quantization()
    activations: Quantization = Quantization(range="mse")
    equalize: Literal["auto", "on", "off"] = "auto"
    smooth: Literal["auto", "on", "off"] = "auto"
    smooth_alpha: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    bias_correction: bool = True
    correction_samples: int = Field(default=64, ge=1)
    fallback: Literal["error", "float"] = "error"
    sparsity: str | None = None
    pruner: Named = "sparsegpt"
    awq: bool = False
    rotate: bool = False
    rules: tuple[Rule, ...] = ()
    seed: int = 0

    @field_validator("pruner", mode="before")
    @classmethod
    def _known_pruner(cls, value: Any) -> Named:
        try:
            return checked(PRUNERS, parsed(value, "pruner"), "pruner")
        except RecipeError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _solvers_and_ranges(self) -> "Recipe":
        try:
            for q in [self.weights, *(r.weights for r in self.rules if r.weights)]:
                q.check_weights()
            for q in [self.activations, *(r.activations for r in self.rules if r.activations)]:
                q.check_activations()
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _zeros(self) -> "Recipe":
        if self.sparsity is not None and not re.fullmatch(r"\d+:\d+|\d+(\.\d+)?%( per row)?", self.sparsity):
            raise ValueError(f"sparsity {self.sparsity!r} is none of `50%`, `50% per row`, `2:4`")
        return self

    def placed(self, layers: Sequence[str]) -> "Recipe":
        """The recipe with ``@first`` and ``@last`` replaced by the first and last of the names, in order of execution.

        >>> Recipe(rules=(Rule(layer="@last", keep="bf16"),)).placed(["stem", "head"]).rules[0].layer
        'head'
        """
        ends = {"@first": escape(layers[0]), "@last": escape(layers[-1])} if layers else {}
        rules = [r.model_copy(update={"layer": ends.get(r.layer or "", r.layer)}) for r in self.rules]
        return self.model_copy(update={"rules": tuple(rules)})

    def rule_for(self, layer: str, op: str) -> Rule | None:
        """All matching rules as one, later ones winning field by field; None where none matches."""
        found = [r for r in self.rules if r.matches(layer, op)]
        if not found:
            return None
        merged: dict[str, object] = {"layer": found[-1].layer, "op": found[-1].op}
        for rule in found:
            if rule.keep:
                merged = {"layer": rule.layer, "op": rule.op, "keep": rule.keep}
            else:
                merged.pop("keep", None)
                merged.update({k: v for k, v in (("weights", rule.weights), ("activations", rule.activations)) if v})
        return Rule.model_validate(merged)

    def weights_by(self, rule: Rule | None) -> Quantization:
        """How the weights of a layer are quantized for which that rule speaks."""
        return (rule.weights if rule else None) or self.weights

    def activations_by(self, rule: Rule | None) -> Quantization:
        """The same of its activations."""
        return (rule.activations if rule else None) or self.activations

    def check_rules(self, layers: Sequence[tuple[str, str]]) -> None:
        """Refuse a rule that matches none of the (name, operator type).

        Raises:
            RecipeError: with the nearest names.
        """
        for rule in self.rules:
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

    def check_graph(self) -> None:
        """Refuse what only folders of language models can have.

        Raises:
            RecipeError: naming the key.
        """
        asked = {
            "awq": self.awq,
            "sparsity": self.sparsity is not None,
            "rotate": self.rotate,
            "fallback: float": self.fallback == "float",
        }
        self._refuse(asked, "is for folders in the Hugging Face layout, which tersor.compress_folder compresses")

    def check_folder(self) -> None:
        """Refuse what a folder of a language model, compressed in its weights only, cannot have.

        Raises:
            RecipeError: naming the key.
        """
        asking = next((r for r in self.rules if r.activations and r.activations.when != "never"), None)
        asked = {
            f"activations of the rule ({asking})": asking is not None,
            "equalize: on": self.equalize == "on",
            "smooth: on": self.smooth == "on",
            "smooth_alpha": self.smooth_alpha != "auto",
        }
        self._refuse(asked, "is not done to folders in the Hugging Face layout, whose weights alone are compressed")

    def _refuse(self, asked: Mapping[str, bool], why: str) -> None:
        for key, used in asked.items():
            if used:
                raise RecipeError(f"`{key}` of the recipe {self.name} {why}; leave it out")

    def to_yaml(self) -> str:
        """The recipe as YAML, which reads back as the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> "Recipe":
        """Read a recipe.

        Raises:
            RecipeError: naming the key, the value and what is allowed.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"{source} is not YAML: {error}") from error
        if not isinstance(data, dict):
            raise RecipeError(f"{source} must be a mapping of keys such as `weights:` and `rules:`")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(f"{source}: {_explained(error)}") from error


def _explained(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key `{where}` (value {item['input']!r})")
        else:
            lines.append(f"`{where}`: {item['msg'].removeprefix('Value error, ')} (value {item['input']!r})"[:400])
    return "; ".join(lines)
