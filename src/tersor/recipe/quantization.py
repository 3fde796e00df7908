"""How a recipe specifies the quantization of a layer's weights or activations."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from tersor.errors import RecipeError, TersorError
from tersor.numerics.formats import FORMATS
from tersor.numerics.spec import Granularity, QuantSpec
from tersor.observers import OBSERVERS, Observer
from tersor.solvers.ask import SOLVERS, Choice, is_solver, solver_choice, weight_ranges
from tersor.tables import Named, checked, made, name_of, nearest, options_of, parsed

# The range of activations whose scale is taken from the tensor itself at every call; earlier versions wrote `runtime`.
DYNAMIC = "dynamic"
_OLD_NAMES = {"runtime": DYNAMIC}


class Strict(BaseModel):
    """An immutable value that is checked when it is created."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantization(Strict):
    """How the weights or the activations are quantized; ``auto`` leaves a field to the engine's policy.

    ``solver`` is for weights: an entry of ``tersor.solvers.SOLVERS``, by name or with its options. ``rtn`` rounds each
    weight to nearest; ``gptq`` solves them against calibrated inputs of their layer. ``range`` of weights is an option
    of the solver (``minmax``, ``mse``), or a solver that can be named as a range (``easyquant``, ``awq``); ``range`` of
    activations is an entry of ``tersor.observers.OBSERVERS``, or ``dynamic``: taken from the tensor itself at every
    call.

    >>> Quantization(format="int8", granularity="channel").spec(QuantSpec("int8")).granularity.kind
    'channel'
    >>> Quantization(format="int4", solver={"gptq": {"damping": 0.02}}).choice().by.damping
    0.02
    """

    format: str = "auto"
    granularity: str = "auto"
    symmetric: bool | None = None
    range: Named = "minmax"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    solver: Named = "rtn"

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value != "auto" and value not in FORMATS:
            raise ValueError(f"unknown format {value!r}; one of auto, {', '.join(FORMATS)}")
        return value

    @field_validator("granularity")
    @classmethod
    def _known_granularity(cls, value: str) -> str:
        try:
            if value != "auto":
                Granularity.parse(value)
        except TersorError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("range", mode="before")
    @classmethod
    def _known_range(cls, value: Any) -> Named:
        try:
            named = parsed(value, "range")
            named = _OLD_NAMES.get(named, named) if isinstance(named, str) else named
            known = dict.fromkeys([*activation_ranges(), *weight_ranges()])
            if (name := name_of(named)) not in known:
                raise RecipeError(f"unknown range {name!r}{nearest(name, known)}; one of {', '.join(known)}")
            return checked(OBSERVERS if name in OBSERVERS else SOLVERS, named, "range") if options_of(named) else named
        except TersorError as error:
            raise ValueError(str(error)) from error

    @field_validator("solver", mode="before")
    @classmethod
    def _known_solver(cls, value: Any) -> Named:
        try:
            return checked(SOLVERS, parsed(value, "solver"), "solver")
        except TersorError as error:
            raise ValueError(str(error)) from error

    @property
    def when(self) -> Literal["static", "dynamic", "never"]:
        """When an activation's range is known: before, from calibration; at every call; or never (float)."""
        return "never" if self.format == "fp32" else "dynamic" if self.range == DYNAMIC else "static"

    @property
    def solves_range(self) -> bool:
        """Whether the range is a solver's own: of a weight, or of an activation together with its reader's weight."""
        return is_solver(name_of(self.range))

    def choice(self, seed: int = 0) -> Choice:
        """The solver of a weight, with its options.

        Raises:
            RecipeError: for a range or rounding that the solver does not support.
        """
        return solver_choice(self.solver, self.range, rounding=self.rounding, seed=seed)

    def observer(self) -> Observer:
        """The estimator of an activation's range; if a solver chooses the range, that of the initial range.

        Raises:
            RecipeError: if there is none.
        """
        name = name_of(self.range)
        start = getattr(SOLVERS.get(name), "input_observer", None)
        return made(OBSERVERS, self.range if start is None else start, "range")

    def without_data(self) -> "Quantization":
        """The same, rounded to nearest: for a weight that is not multiplied by calibrated inputs."""
        plain = type(self).model_fields
        span = plain["range"].default if self.solves_range else self.range
        return self.model_copy(update={"solver": plain["solver"].default, "range": span})

    def check_weights(self) -> None:
        """Reject options that do not apply to weights.

        Raises:
            RecipeError: naming the key, the value and what is allowed.
        """
        if self.solver == type(self).model_fields["solver"].default and name_of(self.range) not in weight_ranges():
            raise RecipeError(f"weights.range is {self.range!r}; weights take one of {', '.join(weight_ranges())}")
        try:
            self.choice()
        except RecipeError as error:
            raise RecipeError(f"weights: {error}") from error

    def check_activations(self) -> None:
        """Reject options that do not apply to activations.

        Raises:
            RecipeError: naming the key, the value and what is allowed.
        """
        if self.solver != type(self).model_fields["solver"].default:
            raise RecipeError("activations.solver: only weights are solved; leave it out")
        if name_of(self.range) not in activation_ranges():
            raise RecipeError(f"activations.range is {self.range!r}; one of {', '.join(activation_ranges())}")
        if self.solves_range and options_of(self.range):
            raise RecipeError("activations.range: options of a solver are for `weights`; give its name alone here")

    def spec(self, default: QuantSpec) -> QuantSpec:
        """The resulting QuantSpec, with ``default`` for ``auto``."""
        # The policy's int8 may have fewer codes than int8 has: 7 bits on a CPU without VNNI.
        own = self.format not in ("auto", default.format.name)
        name = FORMATS[self.format] if own else default.format
        granularity = default.granularity if self.granularity == "auto" else Granularity.parse(self.granularity)
        symmetric = self.symmetric
        if symmetric is None:
            symmetric = default.symmetric if self.format == "auto" else name.signed
        return QuantSpec(name, granularity, symmetric, self.rounding, default.scale_dtype)


def activation_ranges() -> list[str]:
    """All names that ``range`` may have for activations."""
    return [*OBSERVERS, *(n for n, s in SOLVERS.items() if hasattr(s, "input_observer")), DYNAMIC]
