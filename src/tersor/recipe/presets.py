"""The presets: functions that return a Recipe, and the table that names them."""

import difflib
from collections.abc import Callable
from pathlib import Path

from tersor.errors import RecipeError
from tersor.recipe.quantization import Quantization
from tersor.recipe.recipe import Recipe


def int8_static() -> Recipe:
    """The best static int8 we know: weights per channel by their maximum, activations clipped where that lowers
    the squared error, biases corrected layer behind layer."""
    return Recipe(name="int8-static")


def int8_tensorrt() -> Recipe:
    """TensorRT's classic: weights by their maximum, activations by KL divergence."""
    return Recipe(
        name="int8-tensorrt",
        weights=Quantization(range="minmax"),
        activations=Quantization(range="kl"),
        bias_correction=False,
    )


def int8_tflite() -> Recipe:
    """TensorFlow Lite's classic: weights and activations both by their extremes. arXiv 1712.05877."""
    return Recipe(
        name="int8-tflite",
        weights=Quantization(range="minmax"),
        activations=Quantization(range="minmax"),
        bias_correction=False,
    )


def int8_dynamic() -> Recipe:
    """Weights in int8 per channel now, activations in int8 at run time; for linear and recurrent layers."""
    return _at_run_time("int8-dynamic", "auto")


def int16_dynamic() -> Recipe:
    """The same with activations in int16, where 8 bits do not hold an outlier and its neighbours."""
    return _at_run_time("int16-dynamic", "int16")


def _at_run_time(name: str, format: str) -> Recipe:
    activations = Quantization(format=format, range="dynamic")
    return Recipe(name=name, activations=activations, bias_correction=False)


def int8_weight() -> Recipe:
    """Weights only, in int8 per channel; arithmetic stays float."""
    return _weights_only("int8-weight", Quantization(format="int8", granularity="channel"))


def int4_weight() -> Recipe:
    """Weights only, in int4 for groups of 32 inputs, each range clipped to its smallest squared error."""
    return _weights_only("int4-weight", Quantization(format="int4", granularity="group:32", range="mse"))


def int4_gptq() -> Recipe:
    """The same with weights that make up for each other's errors on calibrated inputs. arXiv 2210.17323."""
    weights = Quantization(format="int4", granularity="group:32", range="mse", solver="gptq")
    return _weights_only("int4-gptq", weights)


def int4_awq() -> Recipe:
    """The same by rounding to nearest of weights whose input channels are scaled, and clipped, for the outputs'
    sake. arXiv 2306.00978."""
    weights = Quantization(format="int4", granularity="group:32", symmetric=False, range="awq")
    return _weights_only("int4-awq", weights).model_copy(update={"awq": True})


def sparse_2_4() -> Recipe:
    """Of every four neighbouring weights two are zero, the others make up for them. arXiv 2301.00774."""
    return _weights_only("sparse-2:4", Quantization(format="fp32")).model_copy(update={"sparsity": "2:4"})


def fp16() -> Recipe:
    """Weights in FP16."""
    return _weights_only("fp16", Quantization(format="fp16", granularity="tensor"))


def bf16() -> Recipe:
    """Weights in BF16, and the products of linear layers too."""
    return _weights_only("bf16", Quantization(format="bf16", granularity="tensor"))


def _weights_only(name: str, weights: Quantization) -> Recipe:
    return Recipe(name=name, weights=weights, activations=Quantization(format="fp32"), bias_correction=False)


PRESETS: dict[str, Callable[[], Recipe]] = {
    "int8-static": int8_static,
    "int8-tensorrt": int8_tensorrt,
    "int8-tflite": int8_tflite,
    "int8-dynamic": int8_dynamic,
    "int16-dynamic": int16_dynamic,
    "int8-weight": int8_weight,
    "int4-weight": int4_weight,
    "int4-gptq": int4_gptq,
    "int4-awq": int4_awq,
    "sparse-2:4": sparse_2_4,
    "fp16": fp16,
    "bf16": bf16,
}


def resolve(recipe: "Recipe | str | Path") -> Recipe:
    """A recipe, the name of a preset, or the path of a YAML file, as a Recipe.

    Raises:
        RecipeError: with the nearest preset names where there is no such preset or file.
    """
    if isinstance(recipe, Recipe):
        return recipe
    name = str(recipe)
    if name in PRESETS:
        return PRESETS[name]()
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {name!r}")
        return Recipe.from_yaml(path.read_text(encoding="utf8"), str(path))
    near = difflib.get_close_matches(name, PRESETS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RecipeError(f"no recipe {name!r}{hint} Presets: {', '.join(PRESETS)}; or give the path of a .yaml file")
