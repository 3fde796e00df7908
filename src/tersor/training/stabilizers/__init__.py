"""Stabilizers by name: what stops weights that oscillate between two codes."""

from tersor.training.stabilizers.base import Stabilizer, StabilizerEntry
from tersor.training.stabilizers.dampen import Dampen
from tersor.training.stabilizers.freeze import Freeze
from tersor.training.stabilizers.none import Nothing

__all__ = ["STABILIZERS", "Stabilizer", "StabilizerEntry"]

STABILIZERS: dict[str, type[StabilizerEntry]] = {"none": Nothing, "dampen": Dampen, "freeze": Freeze}
"""All stabilizers by name."""
