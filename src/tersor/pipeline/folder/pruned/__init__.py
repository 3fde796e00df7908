"""The step `prune` for folders: columns of MLPs, heads, experts and layers go, block by block."""

from tersor.pipeline.folder.cuts.plan import CutPlan
from tersor.pipeline.folder.journal import Journal
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.pipeline.folder.pruned.layers import LayerPruner
from tersor.pipeline.folder.pruned.stage import Pruner, Texts, original_activations
from tersor.pipeline.folder.pruned.widths import WidthPruner
from tersor.recipe import Prune

_PRUNERS: dict[str, type[Pruner]] = {
    "layers": LayerPruner, "mlp": WidthPruner, "heads": WidthPruner, "experts": WidthPruner, "parameters": WidthPruner,
}  # fmt: skip


def pruner(step: Prune, metamodel: MetaModel, journal: Journal, texts: Texts, seed: int) -> Pruner:
    """What runs a step; raises as ``plan_cut`` does."""
    return _PRUNERS[step.amount[0]](step, metamodel, journal, texts, seed)


__all__ = ["CutPlan", "Texts", "original_activations", "pruner"]
