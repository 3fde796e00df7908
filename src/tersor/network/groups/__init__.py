"""Which channels, heads and hidden units of a graph can only go together, and the graph without them."""

from tersor.network.groups.branches import Branch, branches, live, settled, without
from tersor.network.groups.check import checked
from tersor.network.groups.costs import macs, macs_left, parameters
from tersor.network.groups.cut import Kept, cut, zeroed
from tersor.network.groups.found import Group, Structure, find

__all__ = [
    "Branch",
    "Group",
    "Kept",
    "Structure",
    "branches",
    "checked",
    "cut",
    "find",
    "live",
    "macs",
    "macs_left",
    "parameters",
    "settled",
    "without",
    "zeroed",
]
