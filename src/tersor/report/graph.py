"""The network as a picture: layers from left to right, with the lines between them.

A simple layered layout (after Sugiyama): the column of a node is its longest way from an input; long lines are led
through stops of their own in every column that they cross; the order within a column follows the neighbours' means;
heights are then as near to the neighbours' as the order and the gaps allow.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS = 6
STOPS = 6000  # of long lines; a network with more has them drawn straight
Place = tuple[float, float]
_Way = list[int]


@dataclass(frozen=True)
class Layout:
    """Places in columns and rows: of nodes by their index, and of lines as ways of places."""

    nodes: tuple[Place, ...]
    lines: tuple[tuple[Place, ...], ...]
    columns: int
    rows: float


def layout(edges: Sequence[tuple[int, int]], count: int) -> Layout:
    """The layout of ``count`` nodes; edges go from a smaller index to a larger one, others are left out.

    >>> found = layout([(0, 1), (1, 2), (0, 2)], 3)
    >>> [x for x, _ in found.nodes], len(found.lines[2])
    ([0, 1, 2], 3)
    """
    edges = [(a, b) for a, b in dict.fromkeys(edges) if a < b]
    column = _columns(edges, count)
    ways = _ways(edges, column)
    heights = _heights(ways, column)
    top = min(heights, default=0.0)
    places = [(column[k], heights[k] - top) for k in range(len(column))]
    lines = tuple(tuple(places[k] for k in way) for way in ways)
    rows = max((y for _, y in places), default=0.0)
    return Layout(tuple(places[:count]), lines, max(column, default=-1) + 1, rows + 1)


def _columns(edges: Sequence[tuple[int, int]], count: int) -> list[int]:
    readers: defaultdict[int, list[int]] = defaultdict(list)
    for a, b in edges:
        readers[a].append(b)
    column = [0] * count
    for a in range(count):
        for b in readers[a]:
            column[b] = max(column[b], column[a] + 1)
    # A node that nothing leads to, such as a second input, stands just before its first reader.
    led = {b for _, b in edges}
    for a in range(count):
        if a not in led and readers[a]:
            column[a] = max(0, min(column[b] for b in readers[a]) - 1)
    return column


def _ways(edges: Sequence[tuple[int, int]], column: list[int]) -> list[_Way]:
    """The nodes and stops of every edge; stops are appended to ``column``."""
    crossed = sum(column[b] - column[a] - 1 for a, b in edges)
    ways = []
    for a, b in edges:
        way = [a]
        for at in range(column[a] + 1, column[b]) if crossed <= STOPS else ():
            way.append(len(column))
            column.append(at)
        ways.append([*way, b])
    return ways


def _heights(ways: Sequence[_Way], column: Sequence[int]) -> list[float]:
    before: defaultdict[int, list[int]] = defaultdict(list)
    after: defaultdict[int, list[int]] = defaultdict(list)
    for way in ways:
        for a, b in pairwise(way):
            after[a].append(b)
            before[b].append(a)
    columns: defaultdict[int, list[int]] = defaultdict(list)
    for k, at in enumerate(column):
        columns[at].append(k)
    height = [0.0] * len(column)
    for members in columns.values():
        for k, node in enumerate(members):
            height[node] = float(k)
    order = sorted(columns)
    for sweep in range(SWEEPS):
        near = (before, after)[sweep % 2]
        for at in order if sweep % 2 == 0 else reversed(order):
            members = columns[at]
            wanted = {k: _mean(near[k] or [k], height) for k in members}
            members.sort(key=wanted.__getitem__)
            for k, y in zip(members, spread([wanted[k] for k in members]), strict=True):
                height[k] = y
    return height


def _mean(nodes: Sequence[int], height: Sequence[float]) -> float:
    return sum(height[k] for k in nodes) / len(nodes)


def spread(wanted: Sequence[float], gap: float = 1.0) -> list[float]:
    """Heights at least ``gap`` apart, in the order given, whose squared distances to those wanted are least.

    >>> spread([0, 0]), spread([0, 5, 5.5])
    ([-0.5, 0.5], [0.0, 4.75, 5.75])
    """
    blocks: list[list[float]] = []  # of nodes that touch: the sum of what they want of the first, and their number
    for k, y in enumerate(wanted):
        blocks.append([y - k * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    level = [total / count for total, count in blocks for _ in range(int(count))]
    return [y + k * gap for k, y in enumerate(level)]


def edges_of(names: Sequence[str], inputs: Mapping[str, Sequence[str]]) -> tuple[list[str], list[tuple[int, int]]]:
    """All nodes (first the inputs of the network, which are not among ``names``) and the edges between their indices.

    >>> edges_of(["a", "b"], {"a": ["x"], "b": ["a", "x"]})
    (['x', 'a', 'b'], [(0, 1), (1, 2), (0, 2)])
    """
    known = set(names)
    outside = dict.fromkeys(source for name in names for source in inputs.get(name, ()) if source not in known)
    nodes = [*outside, *names]
    index = {name: k for k, name in enumerate(nodes)}
    edges = [(index[source], index[name]) for name in names for source in inputs.get(name, ())]
    return nodes, edges
