"""The masks of a training: when they change, by which score, and what is brought back."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tersor.errors import RecipeError
from tersor.solvers.weights import WEIGHT_SCORES, Curvature, WeightProblem
from tersor.solvers.weights.selection import check_pattern, check_share, kept, kept_of_each, regrown
from tersor.tables import made
from tersor.training.proximal.masks import check_zero
from tersor.training.proximal.optimizer import ProximalOptimizer
from tersor.training.proximal.parameters import naming
from tersor.training.roles import Roles
from tersor.training.sparse.growth import GROWTH
from tersor.training.student import latent_weights

UPDATES = 40
"""Updates of the masks in one training, unless the options say how often."""
GRADIENTS = frozenset({"slopes", "squares", "blocks"})


class Sparsifier:
    """Zeros that a training keeps and makes; the optimizer owns the masks.

    After each step of the optimizer call ``step``. Zeros of ``roles.zeros`` stay from the start. With options, every
    ``every`` steps between ``start`` and ``until`` the score chooses which weights go, as many as the schedule says;
    with ``regrow``, some of the kept ones are exchanged for others (RigL, arXiv 1911.11134), a share of them that
    falls by a cosine.

    Args:
        optimizer: of the student's parameters.
        student: the network, where it trains.
        roles: which of its parameters may become zero.
        options: a ``tersor.recipe.steps.sparsify.Sparsify``, or None.
        total: steps of the training.
        epoch: steps of one epoch.
        seed: of what is drawn.

    Raises:
        RecipeError: no weight may become zero, some weights have no code for zero, the share would empty a layer, the
            pattern does not fit, or the point to rewind to does not lie before the zeros are complete.
    """

    def __init__(
        self, optimizer: ProximalOptimizer, student: nn.Module, roles: Roles, options: Any, total: int, epoch: int,
        seed: int = 0,
    ) -> None:
        self.optimizer, self.student, self.options, self.seed = optimizer, student, options, seed
        trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
        asked = roles.weights if options is not None else ()
        self.parameters = {n: trained[n] for n in asked if n in trained}
        self.inputs = roles.weights
        self.total, self.early, self.snapshot = total, _early(options, epoch), dict[str, Tensor]()
        self.complete = options is None
        self._check_zeros(roles.zeros)
        if options is not None:
            self._check()
            self.start, self.end = (round(x * total) for x in (options.start, options.until))
            self.every = options.every or max(1, (self.end - self.start) // UPDATES)
            self.score = made(WEIGHT_SCORES, options.score, "score")
            self.growth = made(GROWTH, options.schedule, "schedule")
            self.curvature = Curvature(self.score.needs & GRADIENTS, getattr(self.score, "block", 1))
        for name in (*self.parameters, *(n for n in roles.zeros if n in trained and n not in self.parameters)):
            # From the start, so that a set without zero is refused.
            keep = trained[name].detach() != 0 if name in roles.zeros else torch.ones_like(trained[name]).bool()
            optimizer.mask(trained[name], keep)
        if self.early == 0:
            self._remember()

    @property
    def restart(self) -> int | None:
        """The step behind which weights are rewound, and the learning rate begins anew."""
        return None if self.early is None else max(1, self.end)

    @torch.no_grad()
    def step(self, done: int) -> None:
        """What is due behind the ``done``-th step of the optimizer, whose gradients are still there."""
        if not self.complete:
            self._watch()
            if done == self.early:
                self._remember()
            last = done >= self.end
            if last or (done >= max(1, self.start) and (done - max(1, self.start)) % self.every == 0):
                self._update(done)
            if last:
                self._complete()
        self.clear(self.student)

    @torch.no_grad()
    def finish(self) -> None:
        """Reach the full share, if the training was too short for it."""
        if not self.complete:
            self._update(max(1, self.end))
            self._complete()
        self.clear(self.student)

    @torch.no_grad()
    def clear(self, module: nn.Module) -> None:
        """Make the masked weights of the student, or of a copy of it, zero."""
        for own, other in zip(self.student.parameters(), module.parameters(), strict=True):
            if own in self.optimizer.masks:
                other.masked_fill_(~self.optimizer.masks[own], 0)

    def share(self, done: int) -> float:
        """The share of zeros that is due behind so many steps."""
        length = max(1, self.end - self.start)
        part = min(1.0, max(0.0, (done - self.start) / length))
        return self.options.final * (1.0 if part == 1 else self.growth(part))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs beside the masks."""
        curvature = {} if self.options is None else self.curvature.state_dict()
        return {"complete": self.complete, "curvature": curvature, "snapshot": dict(self.snapshot)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what ``state_dict`` gave."""
        device = next(self.student.parameters()).device
        self.complete = state["complete"]
        self.snapshot = {name: value.to(device) for name, value in state["snapshot"].items()}
        if self.options is not None:
            self.curvature.load_state_dict(state["curvature"], device)

    def _check_zeros(self, zeros: frozenset[str]) -> None:
        """Refuse weights whose codes have no zero."""
        for weight in latent_weights(self.student):
            if weight.name in self.parameters or weight.name in zeros:
                with naming(self.optimizer.param_groups, weight.parameter):
                    check_zero(weight.quantizer.spec)

    def _check(self) -> None:
        options = self.options
        if not self.parameters:
            raise RecipeError(
                "`sparsity`: no weight of a convolution, linear or recurrent layer is trained here, all are frozen or "
                "computed from others: set requires_grad on some"
            )
        sizes = {name: p.numel() for name, p in self.parameters.items()}
        if options.ratio is not None:
            for name, parameter in self.parameters.items():
                check_pattern(name.removesuffix(".weight"), parameter.shape, options.ratio, self.inputs[name])
        else:
            check_share(sizes, options.final, together=options.scope == "global")
        if self.early is not None and self.early >= max(1, round(options.until * self.total)):
            raise RecipeError(
                f"`sparsity`: weights cannot be rewound to step {self.early} of {self.total}, since the zeros are "
                f"complete at {100 * options.until:g}% of all steps: rewind to an earlier epoch, or to the start by "
                "`rewind: true`"
            )

    def _watch(self) -> None:
        """Add this step's gradients to what the score reads."""
        if self.curvature.needs:
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:
                    self.curvature.add(name, parameter.grad[None])

    def _update(self, done: int) -> None:
        """New masks."""
        problems = {
            name: WeightProblem(name, p.detach(), **self._known(name, p), seed=self.seed + 1000 * k)
            for k, (name, p) in enumerate(self.parameters.items())
        }
        losses = {name: self.score(problem) for name, problem in problems.items()}
        gone = {name: ~self.optimizer.masks[p] for name, p in self.parameters.items()}
        masks = self._chosen(losses, gone, self.share(done))
        for name, parameter in self.parameters.items():
            keep = masks[name]
            parameter.copy_(self.score.updated(problems[name], keep))
            if self.options.regrow and done < self.end and parameter.grad is not None:
                keep = regrown(keep, parameter, parameter.grad, self._exchanged(done))
            self.optimizer.mask(parameter, keep)
        self.curvature.fade()

    def _known(self, name: str, parameter: Tensor) -> Mapping[str, Any]:
        """The means over gradients; of a weight that had none yet, zeros."""
        found = self.curvature.of(name)
        if found or not self.curvature.needs:
            return found
        self.curvature.add(name, torch.zeros_like(parameter)[None])
        return self.curvature.of(name)

    def _chosen(self, losses: Mapping[str, Tensor], gone: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        if self.options.ratio is not None:
            n, m = self.options.ratio
            part = share / self.options.final
            now = m - math.floor((m - n) * part + 1e-9)
            return kept_of_each(losses, (now, m), self.inputs, gone)
        return kept(losses, share, together=self.options.scope == "global", gone=gone)

    def _exchanged(self, done: int) -> float:
        """The share of the kept weights that moves: from ``regrow`` to 0 by a cosine."""
        part = (done - self.start) / max(1, self.end - self.start)
        return self.options.regrow / 2 * (1 + math.cos(math.pi * min(1.0, part)))

    def _remember(self) -> None:
        self.snapshot = {name: t.detach().clone() for name, t in self.student.state_dict().items()}

    def _complete(self) -> None:
        """The last masks are found: go back to the early weights, if that is asked for."""
        self.complete = True
        if self.snapshot:
            for name, value in self.student.state_dict().items():
                value.copy_(self.snapshot[name])
            # Momentum and moments belong to the weights that were left; the entries are shared with the inner one.
            self.optimizer.state.clear()
        self.snapshot = {}
        self.curvature = Curvature(frozenset())


class NoZeros:
    """Of a training that neither keeps nor makes zeros."""

    restart: int | None = None
    complete = True

    def step(self, done: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def clear(self, module: nn.Module) -> None:
        """Nothing."""


def sparsified(
    optimizer: Optimizer, student: nn.Module, roles: Roles, options: Any, total: int, epoch: int, seed: int
) -> tuple[Optimizer, Sparsifier | NoZeros]:
    """The optimizer, with masks where there are zeros to keep or to make; and what changes these.

    Arguments are those of ``Sparsifier``.
    """
    if options is None and not roles.zeros:
        return optimizer, NoZeros()
    wrapped = optimizer if isinstance(optimizer, ProximalOptimizer) else ProximalOptimizer(optimizer)
    return wrapped, Sparsifier(wrapped, student, roles, options, total, epoch, seed)


def _early(options: Any, epoch: int) -> int | None:
    """The step whose weights come back in the end; None: those of none."""
    if options is None or options.rewind is False:
        return None
    return 0 if options.rewind is True else options.rewind * epoch
