"""The user's request: a Recipe of steps with rules, the presets, and the decision for each layer."""

from tersor.recipe.capabilities import Capabilities
from tersor.recipe.decide import Decision, decide, with_names
from tersor.recipe.quantization import Quantization, activation_ranges, weight_ranges
from tersor.recipe.recipe import PRESETS, Recipe, int8_dynamic, int8_static, int8_weight, resolve
from tersor.recipe.rules import Rule
from tersor.recipe.steps import STEPS, Host, Prune, Quantize, Step, Subject, Train

__all__ = [
    "PRESETS",
    "STEPS",
    "Capabilities",
    "Decision",
    "Host",
    "Prune",
    "Quantization",
    "Quantize",
    "Recipe",
    "Rule",
    "Step",
    "Subject",
    "Train",
    "activation_ranges",
    "decide",
    "int8_dynamic",
    "int8_static",
    "int8_weight",
    "resolve",
    "weight_ranges",
    "with_names",
]
