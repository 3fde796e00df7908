"""Proximal operators and projections: ``(weight, strength) -> weight``."""

from tersor.training.proximal.base import Projection, Proximal
from tersor.training.proximal.binary import Binary
from tersor.training.proximal.bits import Bits
from tersor.training.proximal.group_lasso import GroupLasso
from tersor.training.proximal.l1 import L1
from tersor.training.proximal.power_of_two import PowerOfTwo
from tersor.training.proximal.slimming import Slimming
from tersor.training.proximal.ternary import Ternary

PROXIMAL: dict[str, Proximal] = {
    "l1": L1(),
    "group-lasso": GroupLasso(),
    "binary": Binary(),
    "ternary": Ternary(),
    "power-of-two": PowerOfTwo(),
    "bits": Bits(),
}
"""All proximal operators by name, with default options; all but l1 and group-lasso project on quantized sets."""

__all__ = [
    "L1",
    "PROXIMAL",
    "Binary",
    "Bits",
    "GroupLasso",
    "PowerOfTwo",
    "Projection",
    "Proximal",
    "Slimming",
    "Ternary",
]
