"""What proximal operators and masks see of a network that trains."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Roles:
    """What the parameters of a student are in its network, by their dotted names.

    Args:
        weights: those of layers, whose single values may become zero, and the dimension that holds the inputs.
        zeros: those whose zeros stay zero.
        scales: of BatchNorms.
        channels: for each group of channels that go together, where each is: for dimensions of parameters the
            positions [channels, positions of one].
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    zeros: frozenset[str] = frozenset()
    scales: frozenset[str] = frozenset()
    channels: tuple[Mapping[tuple[str, int], Tensor], ...] = ()


NO_ROLES = Roles()
"""Of a network of which nothing is known."""
