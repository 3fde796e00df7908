"""What goes together in a block: columns of an MLP, heads of an attention, experts, and where their values stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.errors import RewriteError
from tersor.pipeline.folder.cuts.plan import Axis

ARRANGEMENTS = 2
"""Ways in which several matrices may be one parameter: one after the other, or all of an atom together."""


@dataclass(frozen=True, eq=False)
class Site:
    """A dimension of a parameter that a group indexes.

    Args:
        parameter: its name in the block.
        dim: of the parameter.
        places: the positions of each atom, ``[atoms, each]``.
        expert: of a parameter of all experts, the one that the group belongs to; None: the group indexes all.
    """

    parameter: str
    dim: int
    places: Tensor
    expert: int | None = None

    def part(self, value: Tensor) -> Tensor:
        """The matrix of the expert, as a view."""
        return value if self.expert is None else value[self.expert]

    @property
    def dim_of_part(self) -> int:
        """The dimension of that matrix."""
        return self.dim if self.expert is None else self.dim - 1


@dataclass(frozen=True, eq=False)
class Group:
    """Atoms of one MLP, attention or set of experts.

    Args:
        name: of the module that holds them, in the block.
        axis: the number of the configuration that says how many there are.
        sites: where they stand.
        reader: the site whose parameter a product sums over them; None for experts.
        turned: the reader is stored ``[in, out]``.
    """

    name: str
    axis: Axis
    sites: tuple[Site, ...]
    reader: Site | None
    turned: bool = False

    @property
    def count(self) -> int:
        """The number of atoms."""
        return self.axis.before

    def matrix(self, value: Tensor) -> Tensor:
        """The reader's weight as ``[out, in]``, a view."""
        assert self.reader is not None
        found = self.reader.part(value)
        return found.mT if self.turned else found


def groups_of(block: nn.Module, prefix: str, axes: Sequence[Axis], turned: Mapping[str, bool], arrangement: int) -> (
    list[Group]
):
    """The groups of a block.

    Args:
        prefix: the block's name in the model.
        turned: the parameters that products read, and whether they are stored ``[in, out]``.
        arrangement: a number below ``ARRANGEMENTS``.

    Raises:
        RewriteError: what reads a group is not one product.
    """
    found: list[Group] = []
    for axis in axes:
        owners: dict[tuple[str, int | None], list[Site]] = {}
        for (name, dim), (size, _) in axis.sites.items():
            if name.startswith(f"{prefix}."):
                parameter = name.removeprefix(f"{prefix}.")
                owner, stacked = _owner(block, parameter)
                places = _places(size, axis, arrangement, f"{prefix}.{parameter}")
                experts = len(block.get_parameter(parameter)) if stacked and axis.kind == "mlp" else 0
                if axis.kind == "experts":
                    owners.setdefault(("", None), []).append(Site(parameter, dim, places))
                for expert in range(experts) if experts else [None]:
                    if axis.kind != "experts":
                        owners.setdefault((owner, expert), []).append(Site(parameter, dim, places, expert))
        for (owner, expert), sites in owners.items():
            name = owner if expert is None else f"{owner}.{expert}"
            if axis.kind == "experts":
                found.append(Group(_common([s.parameter for s in sites]), axis, tuple(sites), None))
                continue
            readers = [s for s in sites if _reads(block, s, turned)]
            if len(readers) != 1:
                raise RewriteError(
                    f"{prefix}.{name}: {len(readers)} products read its {axis.key} ({axis.before}), and one is "
                    "expected; such a block is not pruned"
                )
            found.append(Group(name, axis, tuple(sites), readers[0], turned[readers[0].parameter]))
    return found


def cut(value: Tensor, parameter: str, groups: Sequence[Group], kept: Sequence[Tensor]) -> Tensor:
    """A parameter of the block with the atoms that are kept, in their order."""
    stacks: dict[int, dict[int, Tensor]] = {}
    for group, atoms in zip(groups, kept, strict=True):
        for site in group.sites:
            if site.parameter != parameter:
                continue
            index = site.places[atoms].flatten().sort().values.to(value.device)
            if site.expert is None:
                value = value.index_select(site.dim, index)
            else:
                stacks.setdefault(site.dim, {})[site.expert] = index
    for dim, by_expert in stacks.items():
        value = torch.stack([value[e].index_select(dim - 1, index) for e, index in sorted(by_expert.items())])
    return value


def _owner(block: nn.Module, parameter: str) -> tuple[str, bool]:
    """The module whose columns a parameter holds, and whether that holds experts in parameters of their own."""
    path = parameter.rpartition(".")[0]
    if any(p.ndim == 3 for p in block.get_submodule(path).parameters(recurse=False)):
        return path, True
    return path.rpartition(".")[0], False


def _common(names: Sequence[str]) -> str:
    """The module that holds all of these parameters."""
    paths = [name.split(".")[:-1] for name in names]
    shared = next((k for k in range(min(map(len, paths))) if len({p[k] for p in paths}) > 1), min(map(len, paths)))
    return ".".join(paths[0][:shared])


def _reads(block: nn.Module, site: Site, turned: Mapping[str, bool]) -> bool:
    if site.parameter not in turned:
        return False
    first = block.get_parameter(site.parameter).ndim - 2
    return site.dim == (first if turned[site.parameter] else first + 1)


def _places(size: int, axis: Axis, arrangement: int, name: str) -> Tensor:
    """The positions of each atom in a dimension of ``size``."""
    parts = [size]
    if arrangement == 0 and axis.kind == "heads" and size == sum(axis.parts):
        parts = list(axis.parts)
    elif arrangement == 0 and axis.kind == "mlp" and size % axis.before == 0:
        parts = [axis.before] * (size // axis.before)
    if any(part % axis.before for part in parts):
        raise RewriteError(
            f"{name}: a dimension of {size} follows {axis.key} ({axis.before}), which does not divide it; such a "
            "block is not pruned"
        )
    starts = [sum(parts[:k]) for k in range(len(parts))]
    found = [s + torch.arange(p).reshape(axis.before, -1) for s, p in zip(starts, parts, strict=True)]
    return torch.cat(found, 1)
