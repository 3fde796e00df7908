"""Schedules by name: what is quantized, when."""

from tersor.training.schedules.all import All
from tersor.training.schedules.base import Schedule
from tersor.training.schedules.layers import Layers
from tersor.training.schedules.mixing import Mixing
from tersor.training.schedules.progressive import Progressive

__all__ = ["SCHEDULES", "Schedule"]

SCHEDULES: dict[str, type[Schedule]] = {"all": All, "progressive": Progressive, "layers": Layers, "mixing": Mixing}
"""All schedules by name."""
