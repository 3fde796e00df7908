"""What an engine can do, as data: rows of what it computes in integers, and where quantizers must stand for it."""

from tersor.policy.operators import ACTIVATIONS, ARITHMETIC, AVERAGES, JOINS, LAYERS, MOVES, TRANSPARENT
from tersor.policy.policy import SIMULATION, Policy
from tersor.policy.rows import COMMON, Allowed, AtRunTime, Derived, Fixed, Own, Row, Shared

__all__ = [
    "ACTIVATIONS",
    "ARITHMETIC",
    "AVERAGES",
    "COMMON",
    "JOINS",
    "LAYERS",
    "MOVES",
    "SIMULATION",
    "TRANSPARENT",
    "Allowed",
    "AtRunTime",
    "Derived",
    "Fixed",
    "Own",
    "Policy",
    "Row",
    "Shared",
]
