"""Training with zeros among the weights: their share grows, they may move, and they stay."""

from tersor.training.sparse.growth import GROWTH, Growth
from tersor.training.sparse.sparsifier import Sparsifier, sparsified

__all__ = ["GROWTH", "Growth", "Sparsifier", "sparsified"]
