"""The steps of a recipe, by name."""

from tersor.recipe.steps.base import Host, Phase, Step, Subject, check_order
from tersor.recipe.steps.prune import Prune
from tersor.recipe.steps.quantize import Quantize
from tersor.recipe.steps.train import Train

STEPS: dict[str, type[Step]] = {"quantize": Quantize, "train": Train, "prune": Prune}

__all__ = ["STEPS", "Host", "Phase", "Prune", "Quantize", "Step", "Subject", "Train", "check_order"]
