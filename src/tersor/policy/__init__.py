"""What an engine can do, as data: rows that state what it computes in integers, and where it needs quantizers."""

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
