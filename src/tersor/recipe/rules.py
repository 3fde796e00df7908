"""Rules: the options of a step for some of the layers."""

from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import SerializationInfo, field_validator, model_serializer, model_validator

from tersor.recipe.quantization import Quantization, Strict
from tersor.recipe.sparsity import known_pruner, known_sparsity
from tersor.tables import Named


class Rule(Strict):
    """Options for the layers whose name or operator type matches a glob; options not named in a rule are inherited.

    ``layer`` is a glob on names as printed by ``tersor inspect`` (``@first`` and ``@last`` are the first and the last
    layer with weights), ``op`` one on operator types such as ``softmax`` or ``conv*``; with both, both must match.
    ``keep: fp32`` leaves the layer in float; ``fp16`` and ``bf16`` store its weight in that format, and compute in
    it if the engine can. ``weights``, ``activations`` (the layer's inputs), ``sparsity`` and ``pruner`` change the
    step's options field by field; an explicit ``sparsity=None`` means no zeros. If several rules match, later ones win.

    Raises:
        ValueError: a rule that has no pattern, changes nothing, or both keeps and changes a layer.

    >>> Rule(layer="*.down_proj", weights=Quantization(granularity="channel")).changes
    {'weights': {'granularity': 'channel'}}
    """

    layer: str | None = None
    op: str | None = None
    keep: Literal["fp32", "fp16", "bf16"] | None = None
    weights: Quantization | None = None
    activations: Quantization | None = None
    sparsity: str | None = None
    pruner: Named | None = None

    _known_sparsity = field_validator("sparsity")(known_sparsity)
    _known_pruner = field_validator("pruner", mode="before")(known_pruner)

    @model_validator(mode="after")
    def _changes_something(self) -> "Rule":
        if self.layer is None and self.op is None:
            raise ValueError("a rule needs `layer` or `op`, a glob on names or operator types")
        if not self.changes:
            options = "`keep`, `weights`, `activations`, `sparsity` or `pruner`"
            raise ValueError(f"a rule needs {options}: it would change nothing")
        if self.keep is not None and (others := [f"`{key}`" for key in self.changes if key != "keep"]):
            raise ValueError(f"`keep` leaves the layer in float, so it cannot also have {' or '.join(others)}")
        return self

    @property
    def changes(self) -> dict[str, Any]:
        """The options that the rule names; for ``weights`` and ``activations``, a dict of the fields named."""
        found: dict[str, Any] = {}
        for key in ("keep", "weights", "activations", "sparsity", "pruner"):
            value = getattr(self, key)
            if isinstance(value, Quantization):
                found[key] = {field: getattr(value, field) for field in sorted(value.model_fields_set)}
            elif value is not None or (key == "sparsity" and key in self.model_fields_set):
                found[key] = value
        return found

    def matches(self, layer: str, op: str) -> bool:
        """Whether the rule applies to that layer."""
        return (self.layer is None or fnmatchcase(layer, self.layer)) and (self.op is None or fnmatchcase(op, self.op))

    @model_serializer
    def _named(self, info: SerializationInfo) -> dict[str, Any]:
        """Options that the rule does not name are not written, or they would count as named when the file is read."""
        named = {key: getattr(self, key) for key in type(self).model_fields if key in self.model_fields_set}
        return {
            key: value.model_dump(mode=info.mode, exclude_unset=True) if isinstance(value, Quantization) else value
            for key, value in named.items()
        }

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, Rule) and self.changes == other.changes

    def __str__(self) -> str:
        return ", ".join(f"{k}: {v}" for k, v in (("layer", self.layer), ("op", self.op)) if v is not None)
