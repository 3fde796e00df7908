"""Optimal Brain Surgeon on the training loss: blocks of its empirical Fisher matrix, one threshold for all layers."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tersor.errors import CalibrationError
from tersor.solvers.obs import Elimination, counts_of_rows

# Blocks that are processed together: their inverses stay in the cache.
_TOGETHER = 64


def blocks_of(x: Float[Tensor, "samples weights"], size: int) -> Float[Tensor, "blocks samples size"]:
    """Blocks of neighbouring weights; a partial last block is padded with zeros.

    Of per-sample gradients, ``Gram.of(blocks_of(g, 50)).hessian / 2`` is the block-diagonal empirical Fisher matrix.

    >>> blocks_of(torch.tensor([[1.0, 2.0, 3.0]]), 2).tolist()
    [[[1.0, 2.0]], [[3.0, 0.0]]]
    """
    return F.pad(x, (0, -x.shape[1] % size)).unflatten(1, (-1, size)).transpose(0, 1)


def prune_by_fisher(
    weights: Mapping[str, Float[Tensor, "..."]],
    fishers: Mapping[str, Float[Tensor, "blocks size size"]],
    share: float,
    damping: float = 1e-7,
) -> dict[str, Float[Tensor, "..."]]:
    """Remove the share of a network's weights whose removal raises the loss least, and update the others.

    In every block, weights are removed one by one by w²/(2·[F⁻¹]_qq), and the others in the block compensate for each;
    the number removed from a block follows from the curves of all layers together. Blocks of one weight are Optimal
    Brain Damage by the Fisher diagonal, ½·F_qq·w² (LeCun et al., 1989); blocks of 50 are WoodFisher (arXiv 2004.14340)
    and oBERT (arXiv 2203.07259), which score all weights of a block once, and update for each as if it were removed
    alone.

    Args:
        weights: by layer. Weights that are already zero count as removed.
        fishers: by layer, mean(g·gᵀ) of the loss's per-sample gradients: see ``blocks_of``.
        share: the fraction of all weights together that becomes zero, 0 … 1.
        damping: added to the diagonal of F; it also regularizes an estimate from few samples.

    Returns:
        the weights in their shapes; the removed ones are exactly zero.

    Raises:
        CalibrationError: for blocks that do not match their weight or are not finite, naming the layer.

    >>> weight, fisher = torch.tensor([[1.0, 2.0]]), torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])
    >>> prune_by_fisher({"fc": weight}, {"fc": fisher}, 0.5)["fc"].tolist()
    [[0.0, 2.5]]
    """
    if not weights:
        return {}
    size = next(iter(fishers.values())).shape[-1]
    parts = {n: blocks_of(w.detach().double().reshape(1, -1), size).squeeze(1) for n, w in weights.items()}
    inverses = {n: inverse_of(n, fishers[n], len(parts[n]), damping) for n in parts}
    traced = [emptied(parts[n], inverses[n]) for n in parts]
    # The padding of a layer's last block is zero, so that it is removed first and costs nothing.
    total = round(share * sum(w.numel() for w in weights.values()))
    filled = sum(p.numel() for p in parts.values()) - sum(w.numel() for w in weights.values())
    counts = counts_of_rows(torch.cat([t.losses for t in traced]), total + filled)
    found = {}
    own = counts.split([len(p) for p in parts.values()])
    for (name, part), trace, count in zip(parts.items(), traced, own, strict=True):
        gone = torch.zeros_like(part, dtype=torch.bool)
        gone.scatter_(1, trace.order, torch.arange(part.shape[1], device=part.device) < count[:, None])
        w = without(part, inverses[name], gone).reshape(-1)
        found[name] = w[: weights[name].numel()].reshape(weights[name].shape).to(weights[name].dtype)
    return found


def inverse_of(name: str, fisher: Tensor, count: int, damping: float) -> Float[Tensor, "blocks size size"]:
    """(F + damping·I)⁻¹ of every block, float64.

    Raises:
        CalibrationError: for blocks that are not ``count``, or not finite, naming the layer.
    """
    if fisher.ndim != 3 or len(fisher) != count or not bool(torch.isfinite(fisher).all()):
        raise CalibrationError(
            f"layer {name}: a Fisher matrix of shape {tuple(fisher.shape)} must be {count} finite blocks, as "
            "`blocks_of` cuts the gradients; was the loss NaN or infinite for a sample?"
        )
    damped = fisher.double().clone()
    damped.diagonal(dim1=1, dim2=2).add_(damping)
    return torch.linalg.inv(damped)


def emptied(weight: Float[Tensor, "blocks size"], inverse: Float[Tensor, "blocks size size"]) -> Elimination:
    """Remove all weights of every block, the cheapest first."""
    chunks = zip(weight.split(_TOGETHER), inverse.split(_TOGETHER), strict=True)
    parts = [_empty(w.clone(), i.clone()) for w, i in chunks]
    return Elimination(*(torch.cat([getattr(p, f) for p in parts]) for f in ("order", "losses", "weight")))


def _empty(w: Tensor, inverse: Tensor) -> Elimination:
    count, size = w.shape
    rows, gone = torch.arange(count, device=w.device), torch.zeros_like(w, dtype=torch.bool)
    order, losses = torch.empty_like(w, dtype=torch.long), torch.empty_like(w)
    for k in range(size):
        cost = (w.square() / inverse.diagonal(dim1=1, dim2=2)).masked_fill_(gone, torch.inf)
        losses[:, k], order[:, k] = cost.min(1)
        p = order[:, k]
        column = inverse[rows, p]
        pivot = column[rows, p, None]
        w -= column * (w[rows, p, None] / pivot)
        w[rows, p] = 0
        inverse -= column[:, :, None] * (column / pivot)[:, None]
        gone[rows, p] = True
        # Rounding must neither revive removed weights nor make the diagonal of the others negative.
        inverse.diagonal(dim1=1, dim2=2).clamp_(min=1e-30)
    return Elimination(order, losses / 2, w)


def without(w: Tensor, inverse: Tensor, gone: Bool[Tensor, "blocks size"]) -> Float[Tensor, "blocks size"]:
    """Each block without its removed weights, the others at their optimum: w − F⁻¹_:Q·(F⁻¹_QQ)⁻¹·w_Q."""
    both = gone[:, :, None] & gone[:, None]
    system = torch.where(both, inverse, 0.0)
    system.diagonal(dim1=1, dim2=2)[~gone] = 1
    pull = torch.linalg.solve(system, (w * gone)[:, :, None])
    return (w - (inverse @ pull).squeeze(2)).masked_fill(gone, 0.0)
