"""What the user wants: a Recipe of Rules, and the presets."""

from tersor.recipe.presets import PRESETS, int8_dynamic, int8_static, int8_weight, resolve
from tersor.recipe.quantization import ACTIVATION_RANGES, WEIGHT_RANGES, Quantization
from tersor.recipe.recipe import Recipe, Rule

__all__ = [
    "ACTIVATION_RANGES",
    "PRESETS",
    "WEIGHT_RANGES",
    "Quantization",
    "Recipe",
    "Rule",
    "int8_dynamic",
    "int8_static",
    "int8_weight",
    "resolve",
]
