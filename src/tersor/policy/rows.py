"""The rows of a policy: operators that an engine computes in integers, their inputs, and requirements on their output.

The vocabulary is that of annotations in torchao's PT2E quantization: a tensor has its own parameters, shares those of
another, has fixed ones, or ones derived from others.
"""

from dataclasses import dataclass, replace
from typing import Literal

from tersor.errors import EngineError
from tersor.numerics.spec import QuantSpec
from tersor.policy.operators import JOINS, MOVES

# The role of an operator for the planner (tersor.network.roles). Of ``float`` ones only the output's range is known.
ROLES = ("layer", "runtime", "stored", "arithmetic", "average", "transparent", "fused", "float")


@dataclass(frozen=True)
class Allowed:
    """The specs that an engine accepts for a tensor whose parameters are known before it runs.

    Args:
        default: the spec that it runs fastest, chosen by ``auto``.
        formats: names of number formats.
        granularities: kinds of granularity, such as ``tensor`` or ``group``.
        symmetric: True if it accepts only zero point 0.
        multiple: the number that a group size must be a multiple of.
        rounded: formats whose values it accepts, while the operators that read them compute in float.

    >>> int4, group = frozenset({"int4"}), frozenset({"group"})
    >>> weights = Allowed(QuantSpec("int4", "group:32"), int4, group, symmetric=True, multiple=32)
    >>> weights.obstacle(QuantSpec("int4", "group:32")), weights.obstacle(QuantSpec("int4", "group:16"))
    (None, 'multiple')
    """

    default: QuantSpec
    formats: frozenset[str]
    granularities: frozenset[str]
    symmetric: bool = False
    multiple: int = 1
    rounded: frozenset[str] = frozenset()

    def obstacle(self, spec: QuantSpec) -> Literal["format", "granularity", "multiple", "symmetry"] | None:
        """The first part of a spec that the engine does not accept, or None."""
        if spec.format.name not in self.formats:
            return "format"
        if spec.granularity.kind not in self.granularities:
            return "granularity"
        if spec.block % self.multiple:
            return "multiple"
        return "symmetry" if self.symmetric and not spec.symmetric else None


@dataclass(frozen=True)
class AtRunTime:
    """An input that the engine quantizes itself at run time.

    Args:
        default: the spec; its granularity and symmetry cannot be changed.
        formats: names of the number formats it can quantize to.
        group: the number of neighbours in a token that share a scale; 0: as ``default`` says.
    """

    default: QuantSpec
    formats: frozenset[str]
    group: int = 0


@dataclass(frozen=True)
class Own:
    """The output must be quantized, with its own parameters; otherwise the operator computes in float."""


@dataclass(frozen=True)
class Shared:
    """The output keeps the parameters of the input; several inputs share theirs."""


@dataclass(frozen=True)
class Fixed:
    """The range of an output with 8-bit codes, known without data.

    For sigmoid and softmax it is (0, 255/256): scale 1/256 and zero point 0 in uint8, −128 in int8, as in TFLite.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Derived:
    """Parameters derived from others: for a bias, zero point 0 and scale = input scale × weight scale."""

    bits: int = 32


@dataclass(frozen=True)
class Row:
    """One line of what an engine computes in integers.

    Args:
        role: the role of the operators for the planner, one of ``ROLES``.
        operators: operator types.
        activation: what each input may be; None: it stays float. A row for weights only has none.
        weight: what the weight may be; None: there is none, or it stays float.
        bias: None: it stays float.
        output: None: the row imposes nothing on it.
        shortcut_only: sums of which only the shortcut is quantized, since the other branch is added inside its layer:
            ``bare``: those that no activation function follows.

    Raises:
        EngineError: a role that does not exist.
    """

    role: str
    operators: frozenset[str]
    activation: Allowed | AtRunTime | None = None
    weight: Allowed | None = None
    bias: Derived | None = None
    output: Own | Shared | Fixed | None = None
    shortcut_only: Literal["never", "bare", "always"] = "never"

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise EngineError(f"a row of a policy has the role {self.role!r}; it must be one of {', '.join(ROLES)}")

    def with_weight_codes(self, low: int, high: int) -> "Row":
        """The row with its default weight limited to those codes."""
        if self.weight is None:
            return self
        default = self.weight.default
        narrow = default.with_(format=replace(default.format, low=low, high=high))
        return replace(self, weight=replace(self.weight, default=narrow))


# Common to all engines so far.
COMMON = (
    Row("transparent", MOVES, output=Shared()),
    Row("transparent", JOINS, output=Shared()),
    Row("float", frozenset({"sigmoid", "softmax"}), output=Fixed(0.0, 255 / 256)),
    Row("float", frozenset({"hardsigmoid"}), output=Fixed(0.0, 1.0)),
)
