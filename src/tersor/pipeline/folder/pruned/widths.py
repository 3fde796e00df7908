"""Blocks that become narrower: columns of MLPs, heads, experts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import RewriteError
from tersor.network.blocks.calls import call
from tersor.pipeline.folder.cuts.groups import ARRANGEMENTS, Group, cut, groups_of
from tersor.pipeline.folder.pruned.choose import kept_atoms, repair_product, second_moment
from tersor.pipeline.folder.pruned.experts import expert_parameters, moments_of, rank, scale_experts, without
from tersor.pipeline.folder.pruned.observe import Both, Product, Seen, observe, order_of
from tersor.pipeline.folder.pruned.stage import Pruner
from tersor.words import said

# A cut that is right differs by rounding, one that is wrong by much.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 0.05
Products = dict[Product, Seen]


class WidthPruner(Pruner):
    """Takes the same number of atoms from each block."""

    def make_block(self, number: int, old: nn.Module, new: nn.Module) -> dict[str, Any]:
        """Rate, cut, check and repair one block."""
        prefix = self.dense.blocks.name(self.kept[number])
        first = next(self.both(number))
        cuts = [n.removeprefix(f"{prefix}.") for a in self.plan.axes for n, _ in a.sites if n.startswith(f"{prefix}.")]
        values = {n: p.detach() for n, p in old.named_parameters()}
        notes: list[str] = []
        if not cuts:
            self.copy_block(number, values)
            return {"notes": [said("{name} stays as it is: none of its shapes follow these numbers", name=prefix)]}
        weights = [n for n in dict.fromkeys(cuts) if old.get_parameter(n).ndim > 1]
        turned = order_of(old, first, weights).turned
        seen, differences = Products(), []
        for arrangement in range(ARRANGEMENTS):
            groups = groups_of(old, prefix, self.plan.axes, turned, arrangement)
            if arrangement == 0:
                seen = self._seen(groups, old, number)
            kept = [self._kept(group, old, number, seen, notes) for group in groups]
            self.copy_block(number, {n: cut(v, n, groups, kept) for n, v in values.items()})
            differences.append(_difference(groups, kept, old, new, first))
            if differences[-1] <= _TOLERANCE.get(self.old.dtype, _COARSE):
                self._repair(groups, kept, seen, old, new, number, list(turned))
                return {"notes": notes}
        (axis, *_) = self.plan.axes
        raise RewriteError(
            f"{prefix}: with {axis.key} {axis.after} it does not compute what it computes with zeros in place of what "
            f"went (they differ by {min(differences):.2g} of the output), as something else in it depends on "
            f"{axis.key}: `{self.step.target}` is not for this architecture"
        )

    def _seen(self, groups: list[Group], old: nn.Module, number: int) -> Products:
        """What the readers read and should give, if anyone asks."""
        products = [_product(group) for group in groups if group.reader is not None]
        if not products or self.texts.calibration is None or not (self.score.needs or self.repair):
            return {}
        return observe(old, old, products, _as_dense(self.both(number)), self.dense.blocks.name(self.kept[number]))

    def _kept(self, group: Group, old: nn.Module, number: int, seen: Products, notes: list[str]) -> Tensor:
        if group.reader is not None:
            found, rated = kept_atoms(group, old, self.score, seen.get(_product(group)), self.seed)
            if not rated:
                name = f"{self.dense.blocks.name(self.kept[number])}.{group.name}"
                notes.append(said(
                    "{name} is cut by the size of its weights, since no token of the calibration text reached it",
                    name=name,
                ))
            return found
        gram = None
        if self.score.needs:
            runs = ((b.hidden, b.old) for b in self.both(number))
            gram = second_moment(moments_of(group, old, runs, None), shifted=False)
        gone = group.count - group.axis.after
        return rank(group, old, self.score, gram, self.seed).order[gone:].sort().values

    def _repair(
        self, groups: list[Group], kept: list[Tensor], seen: Products, old: nn.Module, new: nn.Module, number: int,
        reads: list[str],
    ) -> None:  # fmt: skip
        """Fit what reads the atoms that are left, and all others once the stream is not the dense one."""
        if self.repair is None or self.texts.calibration is None:
            return
        cut_readers = {group.reader.parameter for group in groups if group.reader is not None}
        changed = {site.parameter for group in groups for site in group.sites} - cut_readers
        products = [_product(g) for g in groups if g.reader is not None and g.reader.expert is None]
        if number:
            products += [p for p in self.products(number, old) if p.parameter not in cut_readers | changed]
        self.refit(number, old, new, products, None)
        for group, atoms in zip(groups, kept, strict=True):
            if group.reader is None:
                last = [n for n in reads if n in expert_parameters(group, old)][-1]
                runs = ((b.hidden, b.new) for b in self.both(number))
                scale_experts(group, new, last, moments_of(group, new, runs, (group, old)), self.repair)
            elif group.reader.expert is not None:
                product, columns = _product(group), group.reader.places[atoms].flatten().sort().values
                repair_product(product, new, seen[product].moments.of(columns), self.repair)


def _product(group: Group) -> Product:
    assert group.reader is not None
    return Product(group.reader.parameter, group.reader.expert, group.turned)


def _as_dense(batches: Iterator[Both]) -> Iterator[Both]:
    """The batches with the arguments of the dense block, which is run on both inputs."""
    for batch in batches:
        yield Both(batch.reference, batch.hidden, batch.old, batch.old, batch.mask)


@torch.no_grad()
def _difference(groups: list[Group], kept: list[Tensor], old: nn.Module, new: nn.Module, batch: Both) -> float:
    """How far the smaller block is from the dense one with zeros in place of what went, relative to its output."""
    with _zeroed(groups, kept, old):
        wanted = call(old, batch.hidden, *batch.old).cpu().double()
    try:
        found = call(new, batch.hidden, *batch.new).cpu().double()
    except (RuntimeError, ValueError, IndexError):  # arguments for another number of heads
        return float("inf")
    size = (wanted - batch.hidden.cpu().double()).norm().clamp(min=torch.finfo(torch.float64).tiny)
    return float((found - wanted).norm() / size)


@contextmanager
def _zeroed(groups: list[Group], kept: list[Tensor], block: nn.Module) -> Iterator[None]:
    before: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for group, atoms in zip(groups, kept, strict=True):
            gone = torch.ones(group.count, dtype=torch.bool)
            gone[atoms] = False
            (lost,) = gone.nonzero(as_tuple=True)
            if group.reader is None:
                stack.enter_context(without(group, block, lost))
                continue
            value = block.get_parameter(group.reader.parameter).data
            before.setdefault(group.reader.parameter, value.clone())
            group.matrix(value)[:, group.reader.places[lost].flatten()] = 0
        try:
            yield
        finally:
            for name, value in before.items():
                block.get_parameter(name).data.copy_(value)
