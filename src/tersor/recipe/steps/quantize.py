"""The step ``quantize``: numbers become integers or zeros."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_serializer, model_validator

from tersor.errors import RecipeError
from tersor.recipe.quantization import Quantization
from tersor.recipe.rules import Rule
from tersor.recipe.sparsity import known_pruner, known_sparsity
from tersor.recipe.steps.base import Phase, Step, Subject
from tersor.tables import Named
from tersor.task import Task


def _switch(given: Any) -> Any:
    """YAML reads unquoted `on` and `off` as true and false."""
    return given if not isinstance(given, bool) else "on" if given else "off"


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]


class Quantize(Step):
    """How a network is quantized; each host declares which of these options it supports.

    Args:
        weights, activations: of every layer, unless a rule changes them.
        scope: ``layers`` quantizes only the weights and inputs of layers, as research on few bits does; sums, products
            and averages then stay float. ``all`` quantizes everything that the engine computes in integers.
        equalize: ``auto`` equalizes where weights are quantized per tensor, the case it was designed for.
        smooth: ``auto`` smooths Transformers whose activations are calibrated.
        smooth_alpha: how much of the outliers' range moves to the weights; ``auto``: for each value, the best strength
            found on some of its rows.
        bias_correction: correct biases layer by layer, on ``correction_samples`` samples.
        fallback: ``float`` leaves a layer that cannot be solved or stored as requested in its float format, which
            the report states; ``error`` stops.
        sparsity: ``50%``, ``50% per row`` or ``2:4`` of the weights become zero, chosen by ``pruner``; together with
            weights that are quantized, in one sweep (arXiv 2301.00774).
        awq: scale input channels before weights are rounded (arXiv 2306.00978), folded into the preceding weights.
        rotate: rotate the residual stream by a Hadamard matrix (arXiv 2404.00456), folded into the weights.
        rules: other options for some layers.

    Raises:
        ValueError: options that do not exist or contradict each other, naming the rule they belong to.

    >>> Quantize(weights=Quantization(format="int4"), rules=(Rule(layer="head", keep="fp16"),)).weights.format
    'int4'
    """

    name: ClassVar[str] = "quantize"
    phase: ClassVar[Phase] = "quantize"

    weights: Quantization = Quantization()
    activations: Quantization = Quantization(range="mse")
    scope: Literal["all", "layers"] = "all"
    equalize: Switch = "auto"
    smooth: Switch = "auto"
    smooth_alpha: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    bias_correction: bool = True
    correction_samples: int = Field(default=64, ge=1)
    fallback: Literal["error", "float"] = "error"
    sparsity: str | None = None
    pruner: Named = "sparsegpt"
    awq: bool = False
    rotate: bool = False
    rules: tuple[Rule, ...] = ()

    _known_sparsity = field_validator("sparsity")(known_sparsity)
    _known_pruner = field_validator("pruner", mode="before")(known_pruner)

    @model_validator(mode="after")
    def _consistent(self) -> "Quantize":
        by = ""
        try:
            self.weights.check_weights()
            self.activations.check_activations()
            for k, rule in enumerate(self.rules):
                by = f", by rules.{k} ({rule}), which inherits from the step what it does not name"
                changes = rule.changes
                self.weights.model_copy(update=changes.get("weights")).check_weights()
                self.activations.model_copy(update=changes.get("activations")).check_activations()
        except RecipeError as error:
            raise ValueError(f"{error}{by}") from error
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: Any) -> dict[str, Any]:
        """Files of versions without ``scope`` are written back unchanged."""
        data = handler(self)
        return {key: value for key, value in data.items() if (key, value) != ("scope", "all")}

    def __call__(self, subject: Subject, task: Task | None, stages: Any) -> Any:
        """The subject, quantized by its host."""
        return subject.host.quantize(self, subject, task, stages)
