"""Rewrites that make a network easier to quantize without changing its float output."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, runtime_checkable

from tersor.network.network import Network
from tersor.network.rewrites.absorb import AbsorbBias
from tersor.network.rewrites.decompose import Decompose
from tersor.network.rewrites.equalize import Equalize
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm
from tersor.network.rewrites.fold_constants import FoldConstants
from tersor.network.rewrites.fold_pad import FoldPad
from tersor.network.rewrites.global_pool import GlobalPool
from tersor.network.rewrites.hoist import HoistActivations
from tersor.network.rewrites.smooth import Smooth
from tersor.network.rewrites.unroll import Unroll
from tersor.observers import Statistics

__all__ = ["REWRITES", "Rewrite"]


@runtime_checkable
class Rewrite(Protocol):
    """Maps a network to an equivalent one, without changing its argument.

    ``idempotent``: whether a second application changes nothing. Apply it with ``tersor.network.verify.rewritten``.
    """

    idempotent: ClassVar[bool]

    def __call__(self, network: Network, statistics: Mapping[str, Statistics] | None = None) -> Network: ...


REWRITES: dict[str, Callable[..., Rewrite]] = {
    "absorb_bias": AbsorbBias,
    "decompose": Decompose,
    "equalize": Equalize,
    "fold_batchnorm": FoldBatchNorm,
    "fold_constants": FoldConstants,
    "fold_pad": FoldPad,
    "global_pool": GlobalPool,
    "hoist_activations": HoistActivations,
    "smooth": Smooth,
    "unroll": Unroll,
}
"""Every rewrite by name; its parameters are its options."""
