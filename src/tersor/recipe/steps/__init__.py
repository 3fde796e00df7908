"""The steps of a recipe, by name."""

from tersor.recipe.steps.base import Host, Phase, Step, Subject, check_order
from tersor.recipe.steps.quantize import Quantize

STEPS: dict[str, type[Step]] = {"quantize": Quantize}

__all__ = ["STEPS", "Host", "Phase", "Quantize", "Step", "Subject", "check_order"]
