"""All that may go from a network: the atoms of its groups, and its branches, as numbers."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod

from tersor.network.groups import Branch, Kept, Structure, cut, live, macs_left, without
from tersor.network.network import Network


@dataclass(frozen=True)
class Parts:
    """Groups and branches of a network.

    What goes is a collection of numbers: those of atoms, which are not negative, and −1, −2 … for the branches.

    Args:
        structure: the groups.
        branches: those that may go; empty if none may.
    """

    structure: Structure
    branches: tuple[Branch, ...] = ()

    def dropped(self, gone: Iterable[int]) -> tuple[Branch, ...]:
        """The branches among what goes."""
        return tuple(self.branches[-1 - part] for part in gone if part < 0)

    def left(self, gone: Collection[int]) -> tuple[int, ...]:
        """The numbers of the branches that are still computed: neither gone nor in one that is."""
        lost = self.dropped(gone)
        within = {name for branch in lost for name in branch.operators} | {branch.sum for branch in lost}
        return tuple(-1 - k for k, branch in enumerate(self.branches) if branch.sum not in within)

    def small(self, gone: Collection[int]) -> Network:
        """What is left; sums of dropped branches are aliases of their names."""
        return without(cut(self.structure, gone), self.dropped(gone))

    def cost(self, what: str, gone: Collection[int]) -> float:
        """The ``macs``, ``parameters`` or ``bytes`` of what would be left, without making it."""
        network, flow = self.structure.network, self.structure.flow
        kept, alive = Kept(self.structure, gone), live(network, self.dropped(gone))
        if what == "macs":
            return macs_left(kept, alive)
        read = {str(n.target) for n in network.graph.nodes if n.op == "get_attr" and n.name in alive}
        tensors = {name: t for name, t in network.tensors() if name in read and t.is_floating_point()}
        each = {name: t.element_size() if what == "bytes" else 1 for name, t in tensors.items()}
        return sum(each[name] * prod(kept.count(c) for c in flow.tensors[name]) for name in tensors)
