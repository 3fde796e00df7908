"""How many atoms of each group go: the same share of all, or as many as one price buys everywhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import RecipeError
from tersor.network.groups import Group
from tersor.solvers.structured import Ranking


@dataclass(frozen=True, eq=False)
class Offer:
    """What may go from a group, and for what.

    Args:
        group: the group.
        ranking: the order in which its atoms go, and what that costs.
        saved: what each atom saves while all others stay.
        multiple: what is left is a multiple of it.
        most: the largest share of its atoms that may go.
        gone: how many went before.
    """

    group: Group
    ranking: Ranking
    saved: Tensor
    multiple: int = 1
    most: float = 1.0
    gone: int = 0

    def counts(self) -> list[int]:
        """The numbers of atoms that may go, from 0.

        >>> order = torch.arange(6)
        >>> offer = Offer(Group(order.numpy(), {}), Ranking(order, order.float()), torch.ones(6), multiple=4)
        >>> offer.counts()
        [0, 2]
        """
        size = len(self.group)
        least = max(1, min(self.multiple, size), size - int(self.most * size + 1e-9))
        left = [n for n in range(size - 1, 0, -1) if n >= least and n % self.multiple == 0]
        return [0, *(size - n for n in left)]

    def first(self, count: int) -> list[int]:
        """The atoms that go if ``count`` go."""
        return self.group.atoms[self.ranking.order[:count].numpy()].tolist()


Choice = list[int]
"""How many atoms of each offer go."""


def uniform(offers: Sequence[Offer], share: float) -> Choice:
    """The same share of each group, of what it had at first, as near as its counts come."""
    wanted = [share * (len(o.group) + o.gone) - o.gone for o in offers]
    return [min(o.counts(), key=lambda n, w=w: (abs(n - w), n)) for o, w in zip(offers, wanted, strict=True)]


def bought(offers: Sequence[Offer], price: float) -> Choice:
    """For each group the number whose loss, less the price of what it saves, is least."""
    found = []
    for offer in offers:
        counts = offer.counts()
        loss = torch.cat((torch.zeros(1), offer.ranking.loss))[counts].double()
        ordered = offer.saved.double()[offer.ranking.order]
        saved = torch.cat((torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)))[counts]
        found.append(counts[int((loss - price * saved).argmin())])
    return found


def taken(offers: Sequence[Offer], choice: Choice) -> list[int]:
    """The atoms that go."""
    return [atom for offer, count in zip(offers, choice, strict=True) for atom in offer.first(count)]


def reaching(
    offers: Sequence[Offer], limit: float, cost: Callable[[list[int]], float], what: str, *, priced: bool
) -> list[int]:
    """The atoms that go so that the cost is at most ``limit``, and no more of them than that needs.

    Args:
        cost: of the network without some atoms.
        what: the cost, in words.
        priced: by one price of what is saved; otherwise by one share.

    Raises:
        RecipeError: the limit lies below what is left when all goes that may.
    """
    pick = bought if priced else uniform
    low, high = (1e-18, 1e18) if priced else (0.0, 1.0)
    least = cost(taken(offers, pick(offers, high)))
    if least > limit:
        raise RecipeError(
            f"{what} cannot fall to {limit:.4g}: with all channels gone that may go, {least:.4g} are left, of "
            f"{cost([]):.4g}; ask for less, or let rules free more"
        )
    for _round in range(60):
        middle = (low * high) ** 0.5 if priced else (low + high) / 2
        if cost(taken(offers, pick(offers, middle))) <= limit:
            high = middle
        else:
            low = middle
        if (high / max(low, 1e-300) if priced else 1 + high - low) < 1.0005:
            break
    return taken(offers, pick(offers, high))
