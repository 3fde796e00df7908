"""Atoms: what a network can lose as one, such as a channel of all tensors that hold it.

Each position of each dimension of each value is a cell. A cell is an atom; or a product of several, as a column of a
flattened (head, channel) is, which goes if its head goes or its channel goes; or ``SOLID``, which never goes. Operators
join cells that can only go together (union-find).
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.int64]
SOLID = 0


def solid(size: int) -> Cells:
    """Cells that never go.

    >>> solid(2).tolist()
    [0, 0]
    """
    return np.zeros(size, np.int64)


class Atoms:
    """All cells of a network.

    >>> atoms = Atoms()
    >>> heads, inner = atoms.split(atoms.fresh(6), 2, 3)
    >>> atoms.freeze(inner, "the size of a head is fixed")
    >>> atoms.roots(atoms.product(heads, inner)).tolist() == np.repeat(heads, 3).tolist()
    True
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._count = 1
        self._factors: dict[int, tuple[int, int]] = {}
        self._products: dict[tuple[int, int], int] = {}
        self._reasons: dict[int, str] = {}
        self._known: dict[int, tuple[int, ...]] = {}  # the atoms of products, until anything is joined
        self._distinct: dict[int, tuple[Cells, list[int], Cells]] = {}  # by the array, which is held so that it stays

    def fresh(self, size: int) -> Cells:
        """New atoms."""
        first, self._count = self._count, self._count + size
        while self._count > len(self._parent):
            self._parent = np.concatenate((self._parent, np.zeros_like(self._parent)))
        found = np.arange(first, self._count)
        self._parent[first : self._count] = found
        return found

    def roots(self, cells: Cells) -> Cells:
        """For each cell the one that stands for all that are joined with it; SOLID for what never goes."""
        found = self._parent[cells]
        while not np.array_equal(above := self._parent[found], found):
            found = above
        if self._factors:
            each, places = np.unique(found, return_inverse=True)
            found = np.array([self._normal(r) if r in self._factors else r for r in each.tolist()], np.int64)[places]
        return found

    def distinct(self, cells: Cells) -> tuple[list[int], Cells]:
        """The different roots of cells, and for each cell the number of its own; kept until anything is joined."""
        if id(cells) not in self._distinct:
            each, places = np.unique(self.roots(cells), return_inverse=True)
            self._distinct[id(cells)] = cells, each.tolist(), places
        _, roots, numbers = self._distinct[id(cells)]
        return roots, numbers

    def atoms_of(self, cell: int) -> tuple[int, ...]:
        """The atoms whose loss takes the cell, outer ones first; none for SOLID."""
        root = self._root(cell)
        if root == SOLID:
            return ()
        if root not in self._factors:
            return (root,)
        if root not in self._known:
            found = (a for factor in self._factors[root] for a in self.atoms_of(factor))
            self._known[root] = tuple(dict.fromkeys(found))
        return self._known[root]

    def join(self, one: Cells, other: Cells, reason: str) -> None:
        """Let two vectors of cells go together; cells that meet SOLID are frozen, for its reason or else ``reason``."""
        one, other = np.broadcast_arrays(one, other)
        if one is other or np.array_equal(one, other):
            return
        a, b = self.roots(one), self.roots(other)
        apart = np.flatnonzero(a != b)
        for k in apart.tolist():
            why = (self.reason(int(one[k])) or self.reason(int(other[k]))) if not (a[k] and b[k]) else ""
            self._unite(int(a[k]), int(b[k]), why or reason)

    def freeze(self, cells: Cells, reason: str) -> None:
        """Let cells never go."""
        for root in np.unique(self.roots(cells)).tolist():
            self._freeze(self.atoms_of(root), reason)

    def reason(self, cell: int) -> str:
        """Why a cell never goes; empty if it may, or was solid from the start."""
        while cell != SOLID:
            if cell in self._reasons:
                return self._reasons[cell]
            if cell in self._factors:
                return next(filter(None, map(self.reason, self._factors[cell])), "")
            above = int(self._parent[cell])
            if above == cell:
                return ""
            cell = above
        return ""

    def product(self, outer: Cells, inner: Cells) -> Cells:
        """The cells of the flattened (outer, inner): each goes with its outer and with its inner one."""
        a, b = self.roots(outer), self.roots(inner)
        if not b.any():
            return np.repeat(a, len(b))
        if not a.any():
            return np.tile(b, len(a))
        return np.array([self._product(i, j) for i in a.tolist() for j in b.tolist()], np.int64)

    def split(self, cells: Cells, outer: int, inner: int) -> tuple[Cells, Cells]:
        """The outer and the inner cells of a flattened (outer, inner)."""
        found = self.roots(cells).reshape(outer, inner)
        if (found == found[:, :1]).all():
            return found[:, 0], solid(inner)
        if (found == found[:1]).all():
            return solid(outer), found[0]
        if not found.all():
            self.freeze(found.ravel(), "only a part of a dimension that is split could go")
            return solid(outer), solid(inner)
        known = self._known_split(found)
        if known is not None:
            return known
        new = self.fresh(outer), self.fresh(inner)
        self.join(cells, self.product(*new), "")
        return self.roots(new[0]), self.roots(new[1])

    def _known_split(self, found: Cells) -> tuple[Cells, Cells] | None:
        """The split along factors that the cells have already."""
        parts = [[self.atoms_of(cell) for cell in row] for row in found.tolist()]
        rows = [_common(row) for row in parts]
        columns = [_common(column) for column in zip(*parts, strict=True)]
        for row, outer in zip(parts, rows, strict=True):
            for cell, inner in zip(row, columns, strict=True):
                if set(cell) != {*outer, *inner}:
                    return None
        return np.array([self._all(r) for r in rows], np.int64), np.array([self._all(c) for c in columns], np.int64)

    # ------------------------------------------------ cells
    def _root(self, cell: int) -> int:
        while (above := int(self._parent[cell])) != cell:
            cell = above
        return cell

    def _normal(self, root: int) -> int:
        """A product by what is left of it: SOLID, one atom, or the one cell that stands for these atoms."""
        return self._all(self.atoms_of(root))

    def _all(self, atoms: tuple[int, ...]) -> int:
        found = SOLID
        for atom in atoms:
            found = self._product(found, atom)
        return found

    def _product(self, outer: int, inner: int) -> int:
        if outer in (SOLID, inner) or inner == SOLID:
            return outer or inner
        key = outer, inner
        if key not in self._products:
            cell = int(self.fresh(1)[0])
            self._products[key], self._factors[cell] = cell, key
        return self._products[key]

    def _unite(self, one: int, other: int, reason: str) -> None:
        a, b = self.atoms_of(one), self.atoms_of(other)
        if set(a) == set(b):
            return
        if not a or not b:
            return self._freeze((*a, *b), reason)
        if len(a) == len(b) == 1:
            self._put(max(a + b), min(a + b))
            return None
        left, right = [x for x in a if x not in b], [x for x in b if x not in a]
        if not left or not right:  # one implies the other: what is left over would take more than itself
            return self._freeze((*left, *right), "it would take channels of other groups")
        if len(left) == len(right):
            for x, y in zip(left, right, strict=True):
                self._unite(x, y, reason)
        elif min(len(left), len(right)) == 1:
            atom, rest = (left[0], right) if len(left) == 1 else (right[0], left)
            self._put(atom, self._all(tuple(rest)))
        else:
            self._freeze((*left, *right), "two ways of splitting one dimension do not agree")
        return None

    def _freeze(self, atoms: Iterable[int], reason: str) -> None:
        for atom in atoms:
            self._reasons.setdefault(atom, reason)
            self._put(atom, SOLID)

    def _put(self, atom: int, under: int) -> None:
        """Let another cell stand for an atom."""
        self._parent[atom] = under
        self._known.clear()
        self._distinct.clear()


def _common(parts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The atoms that all have, in the order of the first."""
    first, *others = parts
    return tuple(a for a in first if all(a in o for o in others))
