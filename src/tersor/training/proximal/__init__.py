"""Proximal operators and projections: ``(weight, strength) -> weight``."""

from tersor.training.proximal.base import Projection, Proximal
from tersor.training.proximal.binary import Binary
from tersor.training.proximal.bits import Bits
from tersor.training.proximal.l1 import L1
from tersor.training.proximal.power_of_two import PowerOfTwo
from tersor.training.proximal.ternary import Ternary

PROXIMAL: dict[str, Proximal] = {
    "l1": L1(),
    "binary": Binary(),
    "ternary": Ternary(),
    "power-of-two": PowerOfTwo(),
    "bits": Bits(),
}
"""All proximal operators by name, with their default options; all but l1 are projections on quantized sets."""

__all__ = ["L1", "PROXIMAL", "Binary", "Bits", "PowerOfTwo", "Projection", "Proximal", "Ternary"]
