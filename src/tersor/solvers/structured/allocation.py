"""One option for each unit, so that a sum is least and others stay within limits: an integer program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Option = Mapping[str, float]
"""What an option costs, by kind: such as ``loss``, ``ms`` and ``bytes``; what is missing is 0."""


@dataclass(frozen=True)
class Pair:
    """What two options cost together beyond what they cost alone.

    Args:
        one, other: the numbers of the units, and of their options.
        cost: by kind.
    """

    one: tuple[int, int]
    other: tuple[int, int]
    cost: Option


def allocate(
    units: Sequence[Sequence[Option]], least: str, limits: Mapping[str, float], pairs: Sequence[Pair] = (),
    seconds: float = 10.0,
) -> list[int] | None:
    """The number of the option of each unit, so that the sum of ``least`` is least; None if no choice is within limits.

    A product of two choices becomes a variable of its own, bounded by both (McCormick, Mathematical Programming 10,
    1976).

    Args:
        units: the options of each.
        limits: the largest sum of each kind.
        pairs: what two options cost together.
        seconds: after which the best so far is taken.

    >>> layers = [[{"loss": 0.0, "ms": 2.0}, {"loss": 0.3, "ms": 1.0}], [{"loss": 0.0, "ms": 2.0}, {"loss": 0.1}]]
    >>> allocate(layers, "loss", {"ms": 2.5}), allocate(layers, "ms", {"loss": 0.4}), allocate(layers, "ms", {"ms": -1})
    ([0, 1], [1, 1], None)
    """
    starts = np.concatenate(([0], np.cumsum([len(options) for options in units]))).astype(int)
    size, count = int(starts[-1]), int(starts[-1]) + len(pairs)
    flat = [option for options in units for option in options] + [pair.cost for pair in pairs]
    one_each = csr_array(
        (np.ones(size), (np.repeat(np.arange(len(units)), np.diff(starts)), np.arange(size))), (len(units), count)
    )
    rules = [LinearConstraint(one_each, 1, 1)]
    for kind, most in limits.items():
        rules.append(LinearConstraint(np.array([[option.get(kind, 0.0) for option in flat]]), -np.inf, most))
    for number, pair in enumerate(pairs):
        a, b = (int(starts[unit]) + option for unit, option in (pair.one, pair.other))
        rows = np.zeros((3, count))
        rows[:, size + number] = 1
        rows[0, a] = rows[1, b] = rows[2, a] = rows[2, b] = -1
        rules += [LinearConstraint(rows[:2], -np.inf, 0), LinearConstraint(rows[2:], -1, np.inf)]
    wanted = np.array([option.get(least, 0.0) for option in flat])
    scale = float(np.abs(wanted).max()) or 1.0  # so that tolerances of the solver do not count
    found = milp(
        wanted / scale, integrality=np.concatenate((np.ones(size), np.zeros(len(pairs)))), bounds=Bounds(0, 1),
        constraints=rules, options={"time_limit": seconds, "mip_rel_gap": 1e-6},
    )  # fmt: skip
    if found.x is None:
        return None
    return [int(np.argmax(found.x[first:last])) for first, last in pairwise(starts)]
