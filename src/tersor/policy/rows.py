"""The rows of a policy: which operators an engine computes in integers, from what, and what that asks of their output.

The vocabulary is that of annotations in torchao's PT2E quantization: a tensor has parameters of its own, shares those
of another, has fixed ones, or ones that are derived from others'.
"""

from dataclasses import dataclass, replace
from typing import Literal

from tersor.errors import EngineError
from tersor.numerics.spec import QuantSpec
from tersor.policy.operators import JOINS, MOVES

# What an operator is to the planner (tersor.network.roles). Of ``float`` ones only the output's range is known.
ROLES = ("layer", "runtime", "stored", "arithmetic", "average", "transparent", "fused", "float")


@dataclass(frozen=True)
class Allowed:
    """The specs that an engine takes for a tensor whose parameters are known before it runs.

    Args:
        default: the spec that it runs fastest, which ``auto`` means.
        formats: names of number formats.
        granularities: kinds of granularity, such as ``tensor`` or ``group``.
        symmetric: True if it takes zero point 0 only.
        multiple: of what the size of a group must be a multiple.
        rounded: formats whose values it takes, but computes in float what reads them.

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
        """The first part of a spec that the engine does not take, or None."""
        if spec.format.name not in self.formats:
            return "format"
        if spec.granularity.kind not in self.granularities:
            return "granularity"
        if spec.block % self.multiple:
            return "multiple"
        return "symmetry" if self.symmetric and not spec.symmetric else None


@dataclass(frozen=True)
class AtRunTime:
    """An input that the engine quantizes itself whenever it runs.

    Args:
        default: how: its granularity and symmetry cannot be changed.
        formats: names of number formats to which it can.
        group: how many neighbours in a token share a scale; 0: all that ``default`` says.
    """

    default: QuantSpec
    formats: frozenset[str]
    group: int = 0


@dataclass(frozen=True)
class Own:
    """The output must be quantized, with parameters of its own; otherwise the operator computes in float."""


@dataclass(frozen=True)
class Shared:
    """The output keeps the parameters of the input; several inputs share theirs."""


@dataclass(frozen=True)
class Fixed:
    """The range of an output with 8-bit codes, known without data.

    Of sigmoid and softmax it is (0, 255/256): scale 1/256 and zero point 0 in uint8, −128 in int8, as in TFLite.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Derived:
    """Parameters that follow from others': of a bias, zero point 0 and scale = input scale × weight scale."""

    bits: int = 32


@dataclass(frozen=True)
class Row:
    """One line of what an engine computes in integers.

    Args:
        role: what the operators are to the planner, one of ``ROLES``.
        operators: operator types.
        activation: what each input may be; None: it stays float. A row of weights alone has none.
        weight: what the weight may be; None: there is none, or it stays float.
        bias: None: it stays float.
        output: None: the row asks nothing of it.
        shortcut_only: of which sums only the shortcut is quantized, since the other branch is added inside its layer:
            ``bare``: of those that no activation function follows.

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
        """The row whose default weight has those codes only."""
        if self.weight is None:
            return self
        default = self.weight.default
        narrow = default.with_(format=replace(default.format, low=low, high=high))
        return replace(self, weight=replace(self.weight, default=narrow))


# What holds in every engine so far.
COMMON = (
    Row("transparent", MOVES, output=Shared()),
    Row("transparent", JOINS, output=Shared()),
    Row("float", frozenset({"sigmoid", "softmax"}), output=Fixed(0.0, 255 / 256)),
    Row("float", frozenset({"hardsigmoid"}), output=Fixed(0.0, 1.0)),
)
