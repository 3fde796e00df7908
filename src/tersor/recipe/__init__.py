"""What the user wants: a Recipe of Rules, and the presets."""

from tersor.recipe.presets import PRESETS, int8_dynamic, int8_static, int8_weight, resolve
from tersor.recipe.quantization import Quantization, activation_ranges, weight_ranges
from tersor.recipe.recipe import Recipe, Rule

__all__ = [
    "PRESETS",
    "Quantization",
    "Recipe",
    "Rule",
    "activation_ranges",
    "int8_dynamic",
    "int8_static",
    "int8_weight",
    "resolve",
    "weight_ranges",
]
