"""Which atoms of a group stay, and the repair of the product that reads them."""

import torch
from torch import Tensor, nn

from tersor.pipeline.folder.cuts.groups import Group
from tersor.pipeline.folder.pruned.observe import Product, Seen
from tersor.solvers.structured import GroupProblem, Moments, Reader, Repair, Score
from tersor.solvers.structured.plain import Magnitude


def kept_atoms(group: Group, block: nn.Module, score: Score, seen: Seen | None, seed: int) -> tuple[Tensor, bool]:
    """The atoms that stay, in order, and whether the score could rate them: no token may have reached an expert."""
    assert group.reader is not None
    written = []
    for site in group.sites:
        if site is not group.reader:
            value = site.part(block.get_parameter(site.parameter).detach()).float().cpu().movedim(site.dim_of_part, 0)
            written.append(value[site.places].flatten(1))
    weight = group.matrix(block.get_parameter(group.reader.parameter).detach()).float().cpu()
    rated = not score.needs or (seen is not None and seen.moments.rows > 0)
    gram = zeros = None
    if seen is not None and rated:
        shifted = Product(group.reader.parameter, group.reader.expert).bias(block) is not None
        gram = second_moment(seen.moments, shifted)
        assert seen.zeros is not None
        zeros = (seen.zeros / seen.moments.rows)[group.reader.places].mean(1)
    reader = Reader(weight, group.reader.places, gram)
    problem = GroupProblem(group.name, tuple(written), readers=(reader,), zeros=zeros, seed=seed)
    ranking = (score if rated else Magnitude())(problem)
    gone = group.count - group.axis.after
    return ranking.order[gone:].sort().values, rated


def second_moment(moments: Moments, shifted: bool) -> Tensor:
    """The covariance of the inputs where a bias takes up their mean; otherwise their second moment."""
    mean, _, covariance, _ = moments.centred()
    return covariance if shifted else covariance + torch.outer(mean, mean)


@torch.no_grad()
def repair_product(product: Product, block: nn.Module, moments: Moments, repair: Repair) -> None:
    """Fit a product's weight, and its bias if it has one, in place; one that no token reached stays as it is."""
    if not moments.rows:
        return
    weight, bias = product.matrix(block), product.bias(block)
    fitted, shift = repair(moments, weight.float().cpu(), shifted=bias is not None)
    weight.copy_(fitted)
    if bias is not None:
        bias.copy_(shift)
