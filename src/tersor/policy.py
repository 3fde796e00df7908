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
        half_arithmetic: True where it computes in FP16/BF16 a layer that the recipe keeps in one.
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
    half_arithmetic: bool = False
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

        Raises:
            RecipeError: naming the layer, the part of the spec and the engines that can.
        """
        formats = self.weight_formats if kind == "weights" else self.activation_formats
        if spec.format.name not in formats:
            raise RecipeError(
                f"{layer}: {self.engine} cannot run {spec.format.name} {kind}; it takes {', '.join(sorted(formats))}. "
                "The engine `torch` simulates every format"
            )
        granularities = (
            self.granularities
            if kind == "weights"
            else frozenset({"tensor"}) | (self.granularities if self.engine == "torch" else frozenset())
        )
        if spec.granularity.kind not in granularities:
            raise RecipeError(
                f"{layer}: {self.engine} cannot run {kind} quantized per {spec.granularity.kind}; it takes "
                f"{', '.join(sorted(granularities))}. The engine `torch` simulates every granularity"
            )
        if kind == "weights" and not spec.symmetric and self.weight.symmetric and self.engine != "torch":
            raise RecipeError(
                f"{layer}: {self.engine} computes in int8 only with symmetric weights; drop `symmetric: false`, or "
                "use the engine `torch`"
            )


    def check_runtime(self, layer: str, spec: QuantSpec) -> None:
        """Refuse a run-time quantization that the engine does not make.

        Raises:
            RecipeError: naming the layer, and what can.
        """
        if spec.format.name not in self.runtime_formats or spec.granularity.kind != "token" or not spec.symmetric:
            able = f"it takes {', '.join(sorted(self.runtime_formats))}, symmetric, per token"
            raise RecipeError(
                f"{layer}: {self.engine} cannot quantize activations as {spec} at run time; "
                f"{able if self.runtime_formats else 'use the engine openvino, or tersor.quantize_dynamic'}"
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
