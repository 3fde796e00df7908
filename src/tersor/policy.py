"""What an engine can do, as data: which operators run in integers, and where quantizers must stand for it."""

from dataclasses import dataclass, replace
from typing import Literal

from tersor.errors import RecipeError
from tersor.numerics.spec import Granularity, QuantSpec

LAYERS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"}
)
ARITHMETIC = frozenset({"add", "mul"})
AVERAGES = frozenset({"mean", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"})
# Operators that only move or choose values: their output keeps the parameters of their input.
TRANSPARENT = frozenset(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d pad constant_pad_nd reshape view flatten unflatten squeeze "
    "unsqueeze permute transpose t slice select cat concat dropout contiguous clone expand repeat getitem split chunk "
    "split_with_sizes upsample_nearest2d pixel_shuffle pixel_unshuffle channel_shuffle roll index_select narrow "
    "movedim swapaxes stack amax amin".split()
)
ACTIVATIONS = frozenset(
    "relu relu6 hardtanh clamp clamp_min leaky_relu hardswish hardsigmoid silu gelu sigmoid tanh elu prelu mish".split()
)
TOKEN = QuantSpec("int8", "token")


@dataclass(frozen=True)
class Policy:
    """How an engine wants a network to be quantized.

    Args:
        engine: its name, as errors and reports print it.
        activation, weight: the specs it runs fastest.
        activation_formats, weight_formats, granularities: what it can express at all.
        layers, arithmetic, averages: operator types that it computes in integers.
        transparent: operator types that keep their input's parameters.
        fuses: activation functions that merge into the layer before them; the quantizer stands behind.
        needs_output_quantizer: layers that fall back to float unless their output is quantized.
        requantizes_transparent: True where a quantizer must also stand behind transparent operators.
        joins: operators whose inputs must share their parameters.
        decomposes: activation functions to be written in simpler operators first.
        skip_branch_only: whether only the shortcut of a residual add is quantized: ``bare`` means of one that no
            activation function follows.
        half_arithmetic: which of FP16 and BF16 it computes an operator in that the recipe keeps in it.
        rounded: activation formats that it takes by their values alone: what reads them is computed in float.
        stored_formats: formats, and groups of inputs, of weights that it takes where activations are not calibrated;
            stored_multiple: of what these groups must be multiples; stored_asymmetric: whether with zero points.
        runtime: how it quantizes a layer's input at run time; runtime_formats: to what (nothing: not at all);
            runtime_group: neighbours in a token that share a scale, 0 for all of them.
        stores_embeddings: True where the rows of an embedding may be codes.
        integer_biases: True where biases are held as int32 at input scale × weight scale.
        reduced_weights: True where weights keep to 7 bits, since u8·s8 products saturate (no VNNI).
    """

    engine: str
    activation: QuantSpec
    weight: QuantSpec
    activation_formats: frozenset[str]
    weight_formats: frozenset[str]
    granularities: frozenset[str]
    layers: frozenset[str] = LAYERS
    arithmetic: frozenset[str] = ARITHMETIC
    averages: frozenset[str] = AVERAGES
    transparent: frozenset[str] = TRANSPARENT
    fuses: frozenset[str] = ACTIVATIONS
    needs_output_quantizer: frozenset[str] = frozenset()
    requantizes_transparent: bool = False
    joins: frozenset[str] = frozenset({"cat", "concat", "stack"})
    decomposes: frozenset[str] = frozenset()
    skip_branch_only: Literal["never", "bare", "always"] = "never"
    half_arithmetic: frozenset[str] = frozenset()
    rounded: frozenset[str] = frozenset()
    stored_formats: frozenset[str] = frozenset()
    stored_multiple: int = 1
    stored_asymmetric: bool = False
    reduced_weights: bool = False
    integer_biases: bool = False
    stores_embeddings: bool = False
    runtime: QuantSpec = TOKEN
    runtime_formats: frozenset[str] = frozenset()
    runtime_group: int = 0

    def without_vnni(self) -> "Policy":
        """The policy for a CPU whose u8·s8 kernels add pairs of products in 16 bits: weights keep to 7 bits.

        2 · 255 · 127 overflows 16 bits and saturates without a word; 2 · 255 · 63 does not. Engines whose
        activations are signed compute elsewhere, and keep their policy.
        """
        if self.activation.format.signed:
            return self
        seven = replace(self.weight.format, low=-64, high=63)
        return replace(self, weight=self.weight.with_(format=seven), reduced_weights=True)

    def check(self, layer: str, kind: str, spec: QuantSpec) -> None:
        """Refuse a spec that the engine cannot express.

        Args:
            kind: ``activations``, ``weights`` of a layer whose activations are calibrated, or ``stored`` weights of
                one whose activations are float or quantized at run time.

        Raises:
            RecipeError: naming the layer, the part of the spec and the engines that can.
        """
        stored = self.stored_formats if kind == "stored" else frozenset[str]()
        grouped = frozenset({"group"}) if stored else frozenset[str]()
        formats = self.activation_formats if kind == "activations" else self.weight_formats | stored
        granularities = self.granularities | grouped
        if kind == "activations" and self.engine != "torch":
            granularities = frozenset({"tensor"})
        what = "activations" if kind == "activations" else "weights"
        loose = kind == "weights" and (spec.format.name in self.stored_formats or self._grouped(spec))
        remedy = "With `activations: {format: fp32}` it takes those, too; the" if loose else "The"
        if spec.format.name not in formats:
            raise RecipeError(
                f"{layer}: {self.engine} cannot run {spec.format.name} {what}; it takes {', '.join(sorted(formats))}. "
                f"{remedy} engine `torch` simulates every format"
            )
        if spec.granularity.kind not in granularities:
            raise RecipeError(
                f"{layer}: {self.engine} cannot run {what} quantized per {spec.granularity.kind}; it takes "
                f"{', '.join(sorted(granularities))}. {remedy} engine `torch` simulates every granularity"
            )
        if stored and spec.block % self.stored_multiple:
            least = self.stored_multiple
            raise RecipeError(
                f"{layer}: {self.engine} keeps weights in groups of {least} inputs or a multiple of it, not of "
                f"{spec.block}; take group:{-(-spec.block // least) * least} or channel"
            )
        signed = self.weight.symmetric and self.engine != "torch" and not (stored and self.stored_asymmetric)
        if what == "weights" and not spec.symmetric and signed:
            raise RecipeError(
                f"{layer}: {self.engine} computes in int8 only with symmetric weights; drop `symmetric: false`, or "
                "use the engine `torch`"
            )

    def _grouped(self, spec: QuantSpec) -> bool:
        return bool(self.stored_formats) and spec.granularity.kind == "group"

    def check_runtime(self, layer: str, spec: QuantSpec, weight: QuantSpec) -> None:
        """Refuse a run-time quantization that the engine does not make with weights of that spec.

        Raises:
            RecipeError: naming the layer, and what can.
        """
        own = self.runtime
        alike = spec.granularity == own.granularity and spec.symmetric == own.symmetric
        if spec.format.name not in self.runtime_formats or not alike:
            symmetry = "symmetric" if own.symmetric else "asymmetric"
            able = f"it takes {', '.join(sorted(self.runtime_formats))}, {symmetry}, per {own.granularity.kind}"
            raise RecipeError(
                f"{layer}: {self.engine} cannot quantize activations as {spec} at run time; "
                f"{able if self.runtime_formats else 'use the engine openvino, or tersor.quantize_dynamic'}"
            )
        if self.runtime_group and weight.block % self.runtime_group:
            raise RecipeError(
                f"{layer}: {self.engine} quantizes {self.runtime_group} neighbours of a token together, and only where "
                f"the groups of the weights hold whole ones, not {weight.granularity}; take group:{self.runtime_group} "
                "or channel, or leave the activations in float (`activations: {format: fp32}`)"
            )

    def check_half(self, layer: str, op: str, format: str) -> None:
        """Refuse to keep an operator without weights in a half precision that the engine does not compute in.

        Raises:
            RecipeError: naming the operator, and what can.
        """
        if format not in self.half_arithmetic:
            able = f" (it does in {', '.join(sorted(self.half_arithmetic))})" if self.half_arithmetic else ""
            raise RecipeError(
                f"{layer}: {self.engine} does not compute {op} in {format} on this CPU{able}; `keep: fp32` leaves it "
                "in float, the engine `torch` simulates both"
            )


def x86(engine: str) -> Policy:
    """What is common to the CPU engines: uint8 activations per tensor, int8 weights per output channel."""
    return Policy(
        engine=engine,
        activation=QuantSpec("uint8", Granularity.tensor(), symmetric=False),
        weight=QuantSpec("int8", Granularity.channel(0), symmetric=True),
        activation_formats=frozenset({"uint8", "int8"}),
        weight_formats=frozenset({"int8"}),
        granularities=frozenset({"tensor", "channel"}),
    )
