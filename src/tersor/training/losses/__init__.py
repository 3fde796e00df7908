"""Losses of distillation: what a student should learn from its teacher.

LOSSES is the table; ``Distillation`` computes its entries for two networks.
"""

from tersor.training.losses.attention_maps import AttentionMaps
from tersor.training.losses.attention_transfer import AttentionTransfer
from tersor.training.losses.auto import Auto
from tersor.training.losses.base import FeatureLoss, Layers, Loss, OutputLoss, Outputs, floats
from tersor.training.losses.cosine import Cosine
from tersor.training.losses.distillation import Distillation
from tersor.training.losses.dkd import Decoupled
from tersor.training.losses.features import Features
from tersor.training.losses.hidden_states import HiddenStates
from tersor.training.losses.hints import Hints
from tersor.training.losses.layers import paired
from tersor.training.losses.logits import Logits
from tersor.training.losses.mse import MeanSquared
from tersor.training.losses.relational import Relational
from tersor.training.losses.similarity import Similarity

LOSSES: dict[str, type[OutputLoss] | type[FeatureLoss]] = {
    "auto": Auto,
    "logits": Logits,
    "mse": MeanSquared,
    "cosine": Cosine,
    "dkd": Decoupled,
    "hints": Hints,
    "attention-transfer": AttentionTransfer,
    "similarity": Similarity,
    "relational": Relational,
    "hidden-states": HiddenStates,
    "attention-maps": AttentionMaps,
}
"""All losses by name; a recipe names them and may set their options."""

__all__ = [
    "LOSSES",
    "AttentionMaps",
    "AttentionTransfer",
    "Auto",
    "Cosine",
    "Decoupled",
    "Distillation",
    "FeatureLoss",
    "Features",
    "HiddenStates",
    "Hints",
    "Layers",
    "Logits",
    "Loss",
    "MeanSquared",
    "OutputLoss",
    "Outputs",
    "Relational",
    "Similarity",
    "floats",
    "paired",
]
