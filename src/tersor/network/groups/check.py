"""`checked`: groups whose cut network computes what the zeroed one computes, tried on the example."""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tersor.network.groups.cut import Kept, cut, zeroed
from tersor.network.groups.found import Group, Structure
from tersor.network.network import Network, set_tensor, walk

TOLERANCE = 1e-5


def checked(structure: Structure, seed: int = 0) -> Structure:
    """The structure with the groups alone whose cut and zeroed networks agree; the others become fixed.

    Half of each group goes at once. Where that makes a difference, the groups are halved until it is known which.
    """
    half = {id(g): _half(g, seed) for g in structure.groups}
    wrong = _wrong(structure, list(structure.groups), half)
    if not wrong:
        return structure
    kept = tuple(g for g in structure.groups if id(g) not in {id(w) for w in wrong})
    reasons = {site: _why(structure, group) for group in wrong for site in group.sites}
    return replace(structure, groups=kept, fixed={**structure.fixed, **reasons})


def _why(structure: Structure, group: Group) -> str:
    """Why the group is wrong: a sum that was in doubt, or else the plain fact."""
    atoms, own = structure.atoms, set(group.atoms.tolist())
    for cells, reason in structure.flow.doubts:
        if any(not own.isdisjoint(atoms.atoms_of(root)) for root in atoms.roots(cells).tolist()):
            return reason
    return "the network without them does not compute what it computes with zeros in their place"


def difference(structure: Structure, removed: list[int]) -> float:
    """The largest difference between the zeroed and the cut network, over the largest value.

    Compared are the outputs and whatever the network sums over channels, on the example and on a noisy one, since an
    example of zeros, as many are, shows little. Infinite where the cut network does not run, or nothing is finite.
    """
    kept, pair = Kept(structure, removed), (zeroed(structure, removed), cut(structure, removed, traced=False))
    example = structure.network.example
    noisy = any(t.is_floating_point() for t in example)  # noise leaves tokens as they are
    examples = (example, lively(example)) if noisy else (example,)
    tried = [_apart(kept, *pair, inputs) for inputs in examples]
    found = [d for d in tried if not math.isnan(d)]
    if not found:
        return math.inf
    if TOLERANCE < max(found) < math.inf:  # deep networks of float32 differ by their rounding
        doubled = [tuple(t.double() if t.is_floating_point() else t for t in x) for x in examples]
        exact = [_apart(kept, _double(pair[0]), _double(pair[1]), inputs) for inputs in doubled]
        return min(max(found), max((d for d in exact if not math.isnan(d)), default=math.inf))
    return max(found)


def lively(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The example with noise of its own size added to its floating-point tensors: one of zeros shows little."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for t in example:
        noise = torch.randn(t.shape, generator=generator) if t.is_floating_point() else None
        found.append(t if noise is None else t + noise.to(t.dtype) * (t.std() if t.numel() > 1 and t.std() > 0 else 1))
    return tuple(found)


def _apart(kept: Kept, one: Network, other: Network, inputs: tuple[Tensor, ...]) -> float:
    """NaN where no value is finite."""
    flow = kept.structure.flow
    watched = {name for name, _ in flow.sums}
    cells = {n.name: c for n, c in flow.values.items() if n.name in watched and isinstance(c, tuple)}
    try:
        full, small = _seen(one, inputs, cells.keys()), _seen(other, inputs, cells.keys())
    except (RuntimeError, TypeError, IndexError):
        return math.inf
    found, finite = 0.0, False
    for name, value in full.items():
        for dim, own in enumerate(cells.get(name, ())):
            mask = kept.mask(own)
            value = value if mask.all() else value.index_select(dim, torch.from_numpy(mask.nonzero()[0]))
        apart, seen = _distance(value, small[name]) if name in small else (math.inf, True)
        found, finite = max(found, apart), finite or seen
    return found if finite else math.nan


def _seen(network: Network, inputs: tuple[Tensor, ...], names: Collection[str]) -> dict[str, Tensor]:
    """The values of these nodes, and the outputs."""
    found: dict[str, Tensor] = {}

    def see(node: fx.Node, value: Any) -> None:
        if node.name in names and isinstance(value, Tensor):
            found[node.name] = value

    results = walk(network, inputs, see)
    return found | {f"output {k}": v for k, v in enumerate(results) if isinstance(v, Tensor)}


def _distance(a: Tensor, b: Tensor) -> tuple[float, bool]:
    """How far two tensors are apart over the largest value, and whether any of their values is finite."""
    if a.shape != b.shape:
        return math.inf, True
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if not a.is_floating_point():
        return (0.0 if torch.equal(a, b) else math.inf), False
    seen = a.isfinite()
    if (seen != b.isfinite()).any():
        return math.inf, True
    if not seen.any():
        return 0.0, False
    size = float(a[seen].abs().max())
    return float((a - b)[seen].abs().max()) / (size or 1.0), True


def _double(network: Network) -> Network:
    found = network.edit()
    for name, tensor in network.tensors():
        if tensor.is_floating_point():
            set_tensor(found, name, tensor.double())
    return found


def _half(group: Group, seed: int) -> list[int]:
    """Half of its atoms by lot, at least one and not all."""
    count = max(1, min(len(group) - 1, len(group) // 2))
    return np.random.default_rng(seed).permutation(group.atoms)[:count].tolist()


def _wrong(structure: Structure, groups: list[Group], half: dict[int, list[int]]) -> list[Group]:
    removed = [atom for g in groups for atom in half[id(g)]]
    if not groups or difference(structure, removed) <= TOLERANCE:
        return []
    if len(groups) == 1:
        return groups
    middle = len(groups) // 2
    found = [w for part in (groups[:middle], groups[middle:]) for w in _wrong(structure, part, half)]
    return found or groups  # each half alone is sound, so what is wrong lies between them
