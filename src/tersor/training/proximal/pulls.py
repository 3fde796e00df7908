"""What the optimizer may pull weights towards, besides the loss: proximal operators and ADMM, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from tersor.errors import RecipeError
from tersor.tables import Named, made
from tersor.training.proximal import L1, GroupLasso, Slimming
from tersor.training.proximal.admm import Admm
from tersor.training.proximal.group_lasso import Together, positions
from tersor.training.proximal.optimizer import ProximalOptimizer
from tersor.training.roles import NO_ROLES, Roles

PULLS: dict[str, Any] = {"l1": L1(), "group-lasso": GroupLasso(), "slimming": Slimming(), "admm": Admm}
"""What a step `train` may name as ``proximal``."""
# Updates of G and λ in one training.
UPDATES = 40


def pulled(
    optimizer: Optimizer, asked: Named, strength: float, student: nn.Module, weights: Sequence[Any], steps: int,
    roles: Roles = NO_ROLES,
) -> ProximalOptimizer:
    """The optimizer with the pull on every weight that it is for.

    Args:
        strength: of a proximal operator.
        weights: those that are quantized, ``tersor.training.student.LatentWeight`` values.
        steps: of the whole training, from which follow the times of ADMM's updates and the growth of its penalty.
        roles: what the parameters are in the network.

    Raises:
        RecipeError: there is nothing to pull, or ADMM would pull a weight that is not projected as it is.
    """
    wrapped, entry = ProximalOptimizer(optimizer), made(PULLS, asked, "proximal")
    trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
    if isinstance(entry, Slimming):
        return _slimmed(wrapped, entry, strength, trained, roles)
    if isinstance(entry, GroupLasso):
        return _grouped(wrapped, entry, strength, trained, roles)
    if not isinstance(entry, Admm):
        for name, parameter in trained.items():
            if parameter.ndim > 1 and not name.startswith("quantizers."):
                wrapped.prox(parameter, entry, strength)
        return wrapped
    own = [w for w in weights if w.name in trained and hasattr(w.quantizer, "projection")]
    _check(own)
    if not own:
        raise RecipeError("`proximal: admm` needs quantized weights: set `weights: {format: ternary}` or alike")
    every = entry.every or max(1, steps // UPDATES)
    options = made({"admm": entry}, {"admm": {"every": every}}, "proximal").over(max(1, steps // every))
    for weight in own:
        wrapped.admm(trained[weight.name], options, weight.quantizer.spec.with_(rounding="nearest"))
    return wrapped


def _slimmed(
    wrapped: ProximalOptimizer, entry: Slimming, strength: float, trained: Mapping[str, Tensor], roles: Roles
) -> ProximalOptimizer:
    scales = [trained[name] for name in sorted(roles.scales) if name in trained]
    if not scales:
        raise RecipeError(
            "`proximal: slimming` pulls the scales of BatchNorms, and none is trained here: take `group-lasso`"
        )
    for scale in scales:
        wrapped.prox(scale, entry, strength)
    return wrapped


def _grouped(
    wrapped: ProximalOptimizer, entry: GroupLasso, strength: float, trained: Mapping[str, Tensor], roles: Roles
) -> ProximalOptimizer:
    """With the norms of outputs; or of channels, behind each step, since these lie in several parameters."""
    if entry.over == "channels":
        groups = [found for channels in roles.channels if (found := positions(channels, trained))]
        if not groups:
            raise RecipeError(
                "`proximal: {group-lasso: {over: channels}}`: no channels of this network can go: take `over: outputs`"
            )
        wrapped.register_step_post_hook(Together(groups, strength))
        return wrapped
    for name, parameter in trained.items():
        if name in roles.weights or (not roles.weights and parameter.ndim > 1 and not name.startswith("quantizers.")):
            turned = roles.weights.get(name, 1) == 0
            wrapped.prox(parameter, replace(entry, axis=1) if turned else entry, strength)
    return wrapped


def _check(weights: Sequence[Any]) -> None:
    """Refuse weights that are deployed as another point of the set than the one that ADMM pulls them to."""
    for weight in weights:
        if weight.factor is not None:
            raise RecipeError(
                f"`proximal: admm`: the BatchNorm behind {weight.name} is part of what is projected, since its scale "
                f"is {weight.quantizer.spec.granularity}: set `granularity: channel`"
            )
    names = [weight.name for weight in weights]
    if shared := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(
            f"`proximal: admm`: {shared} is shared by layers that quantize it differently: give them one format by "
            "rules"
        )
