"""What the user wants: a Recipe of Rules, and the presets."""

from tersor.recipe.model import ACTIVATION_RANGES, WEIGHT_RANGES, Quantization, Recipe, Rule
from tersor.recipe.presets import PRESETS, int8_dynamic, int8_static, int8_weight, resolve

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
