"""The presets: recipes by name, which others extend."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tersor.recipe.quantization import Quantization
from tersor.recipe.rules import Rule
from tersor.recipe.steps import Quantize, Step, Train
from tersor.training.language.blocks import BlockTraining
from tersor.words import said


@dataclass(frozen=True)
class Preset:
    """The parts of a preset's Recipe: its name, what it is for, and its steps."""

    name: str
    description: str
    steps: tuple[Step, ...]


def int8_static() -> Preset:
    """Weights per channel by their maximum, activations clipped where that lowers the squared error, biases corrected
    layer by layer."""
    about = said("Calibrated int8 for CPUs, with bias correction: the default for tasks")
    return _one("int8-static", about)


def int8_tensorrt() -> Preset:
    """Weights by their maximum, activations by KL divergence."""
    return _classic("int8-tensorrt", "kl", said("TensorRT's classic: activations clipped by KL divergence"))


def int8_tflite() -> Preset:
    """Weights and activations both by their extremes. arXiv 1712.05877."""
    about = said("TensorFlow Lite's classic: weights and activations by their minimum and maximum")
    return _classic("int8-tflite", "minmax", about)


def _classic(name: str, range: str, about: str) -> Preset:
    weights, activations = Quantization(range="minmax"), Quantization(range=range)
    return _one(name, about, weights=weights, activations=activations, bias_correction=False)


def int8_dynamic() -> Preset:
    """Weights in int8 per channel in advance, activations in int8 at run time."""
    about = said("Activations quantized at run time, without data; for linear and recurrent layers")
    return _at_run_time("int8-dynamic", "auto", about)


def int16_dynamic() -> Preset:
    """The same with activations in int16, for outliers that 8 bits cannot represent together with their neighbours."""
    about = said("As int8-dynamic with 16-bit activations, for inputs with far outliers")
    return _at_run_time("int16-dynamic", "int16", about)


def _at_run_time(name: str, format: str, about: str) -> Preset:
    activations = Quantization(format=format, range="dynamic")
    return _one(name, about, activations=activations, bias_correction=False)


def int8_weight() -> Preset:
    """Weights only, in int8 per channel; arithmetic stays float."""
    about = said("Weights only, per channel; arithmetic stays float")
    return _weights_only("int8-weight", Quantization(format="int8", granularity="channel"), about)


def int4_weight() -> Preset:
    """Weights only, in int4 for groups of 32 inputs, each range clipped to its smallest squared error."""
    weights = Quantization(format="int4", granularity="group:32", range="mse")
    return _weights_only("int4-weight", weights, said("Weights only, in groups of 32, rounded to nearest"))


def int4_gptq() -> Preset:
    """The same with weights that compensate for each other's errors on calibrated inputs. arXiv 2210.17323."""
    weights = Quantization(format="int4", granularity="group:32", range="mse", solver="gptq")
    about = said("Weights only, in groups of 32, solved by GPTQ: the default for language models")
    return _weights_only("int4-gptq", weights, about)


def int4_awq() -> Preset:
    """The same rounded to nearest, with input channels scaled, and ranges clipped, for the smallest error of the
    outputs. arXiv 2306.00978."""
    weights = Quantization(format="int4", granularity="group:32", symmetric=False, range="awq")
    about = said("Weights only, in asymmetric groups of 32, input channels scaled by AWQ")
    return _weights_only("int4-awq", weights, about, awq=True)


def sparse_2_4() -> Preset:
    """Two of every four neighbouring weights are zero, and the others compensate for them. arXiv 2301.00774."""
    about = said("Two of every four weights are zero, chosen by SparseGPT; the rest stays float")
    return _weights_only("sparse-2:4", Quantization(format="fp32"), about, sparsity="2:4")


def fp16() -> Preset:
    """Weights in FP16."""
    about = said("Weights stored in FP16: half the size, next to no error")
    return _weights_only("fp16", Quantization(format="fp16", granularity="tensor"), about)


def bf16() -> Preset:
    """Weights in BF16, and also the products of linear layers if PyTorch runs them."""
    about = said("Weights stored in BF16: half the size, with the range of FP32")
    return _weights_only("bf16", Quantization(format="bf16", granularity="tensor"), about)


def _one(name: str, about: str, **options: Any) -> Preset:
    """The one step `quantize`."""
    return Preset(name, about, (Quantize(**options),))


def _weights_only(name: str, weights: Quantization, about: str, **options: Any) -> Preset:
    kept = Quantization(format="fp32")
    return _one(name, about, weights=weights, activations=kept, bias_correction=False, **options)


def int8_qat() -> Preset:
    """int8-static, then one epoch of training with learned scales, from the FP32 network itself."""
    about = said("int8-static, then trained with its quantizers: where the last tenth of a point counts")
    # Larger rates lose more than 8 bits do: on 256 samples 1e-4 made the held-out loss ten times as large. So does a
    # BatchNorm that moves: ResNet-20's divergence fell to 0.8 with its statistics fixed, and rose to 1.8 without.
    return _trained("int8-qat", Quantize(bias_correction=False), 1, about, rate=2e-5, freeze_batchnorm=0.0)


def int4_qat() -> Preset:
    """Weights and inputs of layers in 4 bits, the first and the last layer in 8, three epochs."""
    about = said("Weights and activations in 4 bits, trained; the first and last layer in 8")
    return _trained("int4-qat", _few_bits("int4", "uint4"), 3, about, rate=3e-4)


def int2_qat() -> Preset:
    """Weights and inputs of layers in 2 bits, the first and the last layer in 8, fifteen epochs. arXiv 1902.08153."""
    about = said("Weights and activations in 2 bits, trained for many epochs; the first and last layer in 8")
    return _trained("int2-qat", _few_bits("int2", "uint2"), 15, about, rate=3e-3)


def ternary() -> Preset:
    """Weights of three levels for each channel, activations in float, ten epochs. arXiv 1612.01064."""
    about = said("Weights of -1, 0 and 1 times a scale for each channel, trained; activations stay float")
    return _trained("ternary", _few_bits("ternary", "fp32"), 10, about)


def binary() -> Preset:
    """Weights of two levels for each channel, activations in float, ten epochs. arXiv 1603.05279."""
    about = said("Weights of -1 and 1 times a scale for each channel, trained; activations stay float")
    return _trained("binary", _few_bits("binary", "fp32"), 10, about)


def distill() -> Preset:
    """The network learns from ``Task.teacher``; nothing is quantized. arXiv 1503.02531."""
    kept = Quantization(format="fp32")
    steps = (Train(epochs=10), Quantize(weights=kept, activations=kept, bias_correction=False))
    return Preset("distill", said("A small network learns from a large one; stays float"), steps)


def _few_bits(weights: str, activations: str) -> Quantize:
    """Layers alone, with the ends in 8 bits, as research on few bits does."""
    inputs = Quantization(format=activations, range="mse", symmetric=False if activations != "fp32" else None)
    ends: dict[str, Any] = {"weights": Quantization(format="int8", granularity="channel", symmetric=True)}
    if activations != "fp32":
        ends["activations"] = Quantization(format="uint8", symmetric=False)
    levels = Quantization(
        format=weights,
        granularity="channel",
        range="minmax" if weights == "binary" else "mse",
        symmetric=False if weights.startswith("int") else None,
    )
    rules = tuple(Rule(layer=end, **ends) for end in ("@first", "@last"))
    return Quantize(weights=levels, activations=inputs, scope="layers", bias_correction=False, rules=rules)


# The fewer the bits, the further the weights have to go: rates by the divergence from FP32 on held-out pictures after
# one epoch of ResNet-20: 4 bits 0.0190 (1e-3: 0.0225; SGD 0.01: 0.0199), 2 bits 0.140 (1e-3: 0.149; SGD 0.01: 0.136).
def _trained(name: str, quantize: Quantize, epochs: int, about: str, **options: Any) -> Preset:
    return Preset(name, about, (quantize, Train(epochs=epochs, **options)))


def int3_train() -> Preset:
    """As ``int4-gptq`` in 3 bits, then trained block by block, and its scales end to end. arXiv 2407.11062."""
    return _in_blocks("int3", said("Weights only, 3 bits in asymmetric groups of 32, trained block by block"))


def int2_train() -> Preset:
    """The same in 2 bits."""
    return _in_blocks("int2", said("Weights only, 2 bits in asymmetric groups of 32, trained block by block"))


def _in_blocks(format: str, about: str) -> Preset:
    weights = Quantization(format=format, granularity="group:32", symmetric=False, range="mse", solver="gptq")
    made = _weights_only(f"{format}-train", weights, about)
    return Preset(made.name, about, (*made.steps, Train(blocks=BlockTraining())))


PARTS: dict[str, Callable[[], Preset]] = {
    "int8-static": int8_static,
    "int8-tensorrt": int8_tensorrt,
    "int8-tflite": int8_tflite,
    "int8-dynamic": int8_dynamic,
    "int16-dynamic": int16_dynamic,
    "int8-weight": int8_weight,
    "int4-weight": int4_weight,
    "int4-gptq": int4_gptq,
    "int4-awq": int4_awq,
    "int3-train": int3_train,
    "int2-train": int2_train,
    "sparse-2:4": sparse_2_4,
    "fp16": fp16,
    "bf16": bf16,
    "int8-qat": int8_qat,
    "int4-qat": int4_qat,
    "int2-qat": int2_qat,
    "ternary": ternary,
    "binary": binary,
    "distill": distill,
}
"""The parts of every preset by name; a preset is a function without arguments."""
