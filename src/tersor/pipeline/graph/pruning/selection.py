"""How much of each group goes: the same share of all, or as much as one price buys everywhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.errors import RecipeError


@dataclass(frozen=True, eq=False)
class Offer:
    """What may go from a group, or a branch, and for what.

    Args:
        order: the numbers of what may go, the first to go in front.
        counts: how many may go, rising from 0.
        loss: what it costs that so many go: [counts], from 0.
        saved: what it saves that so many go: [counts], from 0.
        gone: how many went before.
        branch: whether it goes as a whole.
        inside: the places of the offers that go with a branch.
        name: of the group, or of the branch.

    >>> Offer([7, 3, 5], (0, 2), np.array([0.0, 1.0]), np.array([0.0, 4.0])).first(2)
    [7, 3]
    """

    order: Sequence[int]
    counts: Sequence[int]
    loss: NDArray[np.float64]
    saved: NDArray[np.float64]
    gone: int = 0
    branch: bool = False
    inside: tuple[int, ...] = ()
    name: str = ""

    def first(self, count: int) -> list[int]:
        """What goes if ``count`` go."""
        return list(self.order[:count])


Choice = list[int]
"""How many go of each offer."""


def allowed(size: int, multiple: int = 1, most: float = 1.0) -> list[int]:
    """The numbers that may go of ``size`` channels, so that what is left is a multiple, and no more than ``most`` go.

    >>> allowed(6, multiple=4), allowed(4, most=0.5)
    ([0, 2], [0, 1, 2])
    """
    least = max(1, min(multiple, size), size - int(most * size + 1e-9))
    return [0, *(size - n for n in range(size - 1, 0, -1) if n >= least and n % multiple == 0)]


def uniform(offers: Sequence[Offer], share: float) -> Choice:
    """The same share of each group, of what it had at first, as near as its counts come; branches stay."""
    wanted = [share * (len(o.order) + o.gone) - o.gone for o in offers]
    return [
        0 if o.branch else min(o.counts, key=lambda n, w=w: (abs(n - w), n))
        for o, w in zip(offers, wanted, strict=True)
    ]


def given(
    offers: Sequence[Offer], widths: Mapping[str, Sequence[int]], dropped: Mapping[str, int], number: int
) -> Choice:
    """What goes in a round, by how many are left behind it."""
    found = Choice()
    for offer in offers:
        if offer.branch:
            found.append(int(dropped.get(offer.name) == number))
            continue
        left = widths.get(offer.name, (len(offer.order),) * number)[number - 1]
        found.append(max(0, len(offer.order) - left))
    return found


def bought(offers: Sequence[Offer], price: float) -> Choice:
    """For each offer the number whose loss, less the price of what it saves, is least; a branch goes for its groups."""
    found, worth = Choice(), list[float]()
    for offer in offers:
        value = offer.loss - price * offer.saved
        best = int(value.argmin())
        found.append(offer.counts[best])
        worth.append(float(value[best]))
    for number, offer in enumerate(offers):
        if not offer.branch or not found[number]:
            continue
        if worth[number] < sum(worth[k] for k in offer.inside):
            for k in offer.inside:
                found[k], worth[k] = 0, 0.0
        else:
            found[number] = 0
    return found


def taken(offers: Sequence[Offer], choice: Choice) -> list[int]:
    """The numbers of all that goes."""
    return [part for offer, count in zip(offers, choice, strict=True) for part in offer.first(count)]


def reaching(
    offers: Sequence[Offer], limit: float, cost: Callable[[Choice], float], what: str, *, priced: bool
) -> Choice:
    """How many go so that the cost is at most ``limit``, and no more than that needs.

    Args:
        cost: of the network after a choice.
        what: the cost, in words.
        priced: by one price of what is saved; otherwise by one share.

    Raises:
        RecipeError: the limit lies below what is left when all goes that may.
    """
    pick = bought if priced else uniform
    low, high = (1e-18, 1e18) if priced else (0.0, 1.0)
    least = cost(pick(offers, high))
    if least > limit:
        raise RecipeError(
            f"{what} cannot fall to {limit:.4g}: with all gone that may go, {least:.4g} are left, of "
            f"{cost([0] * len(offers)):.4g}; ask for less, or let rules free more"
        )
    for _round in range(60):
        middle = (low * high) ** 0.5 if priced else (low + high) / 2
        if cost(pick(offers, middle)) <= limit:
            high = middle
        else:
            low = middle
        if (high / max(low, 1e-300) if priced else 1 + high - low) < 1.0005:
            break
    return pick(offers, high)
