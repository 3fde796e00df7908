"""How an engine requires a network to be quantized, and what it rejects."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from tersor.errors import RecipeError
from tersor.numerics.spec import QuantSpec
from tersor.policy.rows import Allowed, AtRunTime, Derived, Fixed, Own, Row

# The engine that error messages recommend.
SIMULATION = "torch"
WEIGHTED = ("layer", "runtime", "stored")


@dataclass(frozen=True)
class Policy:
    """How an engine requires a network to be quantized.

    Args:
        engine: its name in errors and reports.
        rows: what it computes in integers; if an operator is in several rows of one role, the first counts.
        decomposes: activation functions that are first decomposed into simpler operators.
        half_arithmetic: those of FP16 and BF16 in which it computes an operator that the recipe keeps in that format.
        target: the name of the target hardware.
        reduced_weights: True if weights keep to 7 bits, since u8·s8 products saturate on the target.

    >>> int8 = Allowed(QuantSpec("int8", "channel"), frozenset({"int8"}), frozenset({"channel"}), symmetric=True)
    >>> policy = Policy("weights only", (Row("stored", frozenset({"linear"}), weight=int8),))
    >>> policy.check_weight("head", "layer", "linear", QuantSpec("int8", "channel"))
    Traceback (most recent call last):
    tersor.errors.RecipeError: head: weights only computes no linear with calibrated activations; leave them in
    float (`activations: {format: fp32}`)
    """

    engine: str
    rows: tuple[Row, ...]
    decomposes: frozenset[str] = frozenset()
    half_arithmetic: frozenset[str] = frozenset()
    target: str = ""
    reduced_weights: bool = False

    def row(self, role: str, op: str) -> Row | None:
        """The row of an operator type in a role, or None."""
        return next((r for r in self.rows if r.role == role and op in r.operators), None)

    def operators(self, *roles: str) -> frozenset[str]:
        """The operator types that have a row in one of the roles."""
        return frozenset(op for r in self.rows if r.role in roles for op in r.operators)

    @cached_property
    def layers(self) -> frozenset[str]:
        """Operators with a weight that may be quantized in some way, except embeddings."""
        return self.operators(*WEIGHTED) - {"embedding"}

    @cached_property
    def transparent(self) -> frozenset[str]:
        """Operators that do not change values."""
        return self.operators("transparent")

    @cached_property
    def needs_output_quantizer(self) -> frozenset[str]:
        """Layers that fall back to float unless their output is quantized."""
        return frozenset(op for r in self.rows if r.role == "layer" and isinstance(r.output, Own) for op in r.operators)

    @cached_property
    def rounded(self) -> frozenset[str]:
        """Activation formats of which it uses only the values: the operators that read them compute in float."""
        return frozenset(name for allowed in self._activations() for name in allowed.rounded)

    @cached_property
    def activation(self) -> QuantSpec:
        """The spec of calibrated activations that ``auto`` means."""
        return next((a.default for a in self._activations()), QuantSpec("fp32"))

    @cached_property
    def weight(self) -> QuantSpec:
        """The spec of weights that ``auto`` means."""
        return next((r.weight.default for r in self.rows if r.weight is not None), QuantSpec("fp32"))

    @cached_property
    def runtime(self) -> AtRunTime:
        """How it quantizes a layer's input at run time; without formats if it does not."""
        found = (r.activation for r in self.rows if isinstance(r.activation, AtRunTime))
        return next(found, AtRunTime(QuantSpec("int8", "token"), frozenset()))

    @property
    def integer_biases(self) -> bool:
        """Whether biases are stored as integers, at input scale × weight scale."""
        return any(isinstance(r.bias, Derived) for r in self.rows)

    def fixed_range(self, op: str, spec: QuantSpec) -> tuple[float, float] | None:
        """The range of an operator's output, if it is known without data; of 8-bit codes only."""
        found = (r.output for r in self.rows if op in r.operators and isinstance(r.output, Fixed))
        fixed = next(found, None) if spec.format.bits == 8 else None
        return None if fixed is None else (fixed.low, fixed.high)

    def with_reduced_weights(self) -> "Policy":
        """The policy for a CPU whose u8·s8 kernels add pairs of products in 16 bits: weights keep to 7 bits.

        2 · 255 · 127 overflows 16 bits and saturates silently; 2 · 255 · 63 does not. Engines whose
        activations are signed compute elsewhere, and keep their policy.
        """
        if self.activation.format.signed:
            return self
        return replace(self, rows=tuple(r.with_weight_codes(-64, 63) for r in self.rows), reduced_weights=True)

    def check_activation(self, name: str, spec: QuantSpec, readers: Iterable[str] = ()) -> None:
        """Reject a calibrated activation that the operators reading it do not accept.

        Args:
            name: of the value, as shown to users.
            readers: the types of operators; for those without a row for activations, the layers' row applies.

        Raises:
            RecipeError: naming the value, the part of the spec, and what can.
        """
        taking = [a for op in sorted(readers) for a in self._activations(op)] or list(self._activations())[:1]
        for allowed in taking:
            if (obstacle := allowed.obstacle(spec)) is not None:
                raise RecipeError(f"{name}: {self._refusal(obstacle, spec, allowed, 'activations')}")

    def check_weight(self, layer: str, role: str, op: str, spec: QuantSpec) -> None:
        """Reject a weight that the engine does not accept for a layer in that role.

        Args:
            role: ``layer``: its input is calibrated; ``runtime``: quantized at run time; ``stored``: float.

        Raises:
            RecipeError: naming the layer, the part of the spec, and what can.
        """
        row = self.row(role, op)
        if row is None or row.weight is None:
            raise RecipeError(f"{layer}: {self._no_row(role, op)}")
        obstacle = row.weight.obstacle(spec)
        if obstacle is None:
            return
        stored = self.row("stored", op)
        taken = stored is not None and stored.weight is not None and stored.weight.obstacle(spec) is None
        remedy = "With `activations: {format: fp32}` it takes those, too; the" if taken else "The"
        raise RecipeError(f"{layer}: {self._refusal(obstacle, spec, row.weight, 'weights', remedy)}")

    def check_runtime(self, layer: str, op: str, spec: QuantSpec, weight: QuantSpec) -> None:
        """Reject a run-time quantization that the engine does not support with weights of that spec.

        Raises:
            RecipeError: naming the layer, and what can.
        """
        runtime, own = self.runtime, self.runtime.default
        alike = spec.granularity == own.granularity and spec.symmetric == own.symmetric
        if self.row("runtime", op) is None:
            raise RecipeError(f"{layer}: {self._no_row('runtime', op)}")
        if spec.format.name not in runtime.formats or not alike:
            symmetry = "symmetric" if own.symmetric else "asymmetric"
            raise RecipeError(
                f"{layer}: {self.engine} cannot quantize activations as {spec} at run time; "
                f"it takes {', '.join(sorted(runtime.formats))}, {symmetry}, per {own.granularity.kind}"
            )
        if runtime.group and weight.block % runtime.group:
            raise RecipeError(
                f"{layer}: {self.engine} quantizes {runtime.group} neighbours of a token together, and only where "
                f"the groups of the weights hold whole ones, not {weight.granularity}; take group:{runtime.group} "
                "or channel, or leave the activations in float (`activations: {format: fp32}`)"
            )

    def check_half(self, layer: str, op: str, format: str) -> None:
        """Reject keeping an operator without weights in a half precision that the engine does not compute in.

        Raises:
            RecipeError: naming the operator, and what can.
        """
        if format not in self.half_arithmetic:
            able = f" (it does in {', '.join(sorted(self.half_arithmetic))})" if self.half_arithmetic else ""
            raise RecipeError(
                f"{layer}: {self.engine} does not compute {op} in {format} on {self.target}{able}; `keep: fp32` "
                f"leaves it in float, the engine `{SIMULATION}` simulates both"
            )

    def _activations(self, op: str | None = None) -> Iterator[Allowed]:
        for row in self.rows:
            if isinstance(row.activation, Allowed) and (op is None or op in row.operators):
                yield row.activation

    def _no_row(self, role: str, op: str) -> str:
        if role == "layer":
            return (
                f"{self.engine} computes no {op} with calibrated activations; leave them in float "
                "(`activations: {format: fp32}`)"
            )
        if role == "runtime":
            return f"{self.engine} quantizes no input of {op} at run time; tersor.quantize_dynamic does, in PyTorch"
        return f"{self.engine} stores no quantized weight of {op} under float activations; calibrate the activations"

    def _refusal(self, obstacle: str, spec: QuantSpec, allowed: Allowed, what: str, remedy: str = "The") -> str:
        """The message: what it does not accept, what it does, and which engine can."""
        if obstacle == "format":
            taken = ", ".join(sorted(allowed.formats))
            return (
                f"{self.engine} cannot run {spec.format.name} {what}; it takes {taken}. "
                f"{remedy} engine `{SIMULATION}` simulates every format"
            )
        if obstacle == "granularity":
            taken = ", ".join(sorted(allowed.granularities))
            return (
                f"{self.engine} cannot run {what} quantized per {spec.granularity.kind}; it takes {taken}. "
                f"{remedy} engine `{SIMULATION}` simulates every granularity"
            )
        if obstacle == "multiple":
            least = allowed.multiple
            return (
                f"{self.engine} keeps {what} in groups of {least} inputs or a multiple of it, not of "
                f"{spec.block}; take group:{-(-spec.block // least) * least} or channel"
            )
        return (
            f"{self.engine} takes only symmetric {what} (zero point 0); drop `symmetric: false`, or use the engine "
            f"`{SIMULATION}`"
        )
