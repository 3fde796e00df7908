"""Distillation: the losses of one student and one teacher, with what they need from both."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import RecipeError, TaskError
from tersor.training.losses.base import FeatureLoss, Loss, Outputs
from tersor.training.losses.features import (
    Features,
    attention_of,
    evaluating,
    feature_of,
    run,
    unwrapped,
)
from tersor.training.losses.layers import Pairs, paired


class Distillation(nn.Module):
    """The weighted sum of losses between what a student and a frozen teacher compute.

    The caller runs the student inside ``with distillation:``; the teacher runs here, in eval mode and without
    gradients. Both are as they were before when the block is left. The parameters of this module are the projections
    between layers of different widths: give them to the optimizer, and where several processes train, wrap this module
    as the student is. Neither network is a part of its ``state_dict``.

    Args:
        losses: entries of LOSSES, by name.
        student: the network that is trained; a DistributedDataParallel or compiled module is looked through.
        teacher: a network that takes the same arguments; not the student itself.
        example: the arguments of one call, a tuple, or a mapping of keyword arguments; both networks run it once.
        seed: of the projections; the caller's random state is not changed.

    Attributes:
        pairs: by loss, the pairs (student's layer, teacher's layer) that it compares.
        task_share: the factor of the task's own loss, if there is one, beside these losses.

    Raises:
        RecipeError: layers that do not exist or cannot be compared, with their names and shapes; or no loss.
        TaskError: outputs that do not fit, with their shapes; or a teacher that is the student.

    >>> from tersor.training.losses import Hints, Logits
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> x = torch.ones(2, 4)
    >>> distillation = Distillation({"logits": Logits(), "hints": Hints("1")}, student, teacher, (x,))
    >>> [list(p.shape) for p in distillation.parameters()], round(distillation.task_share, 2)
    ([[16, 8]], 0.1)
    >>> with distillation:
    ...     distillation(student(x), (x,)).backward()
    >>> teacher[0].weight.grad is None, student[0].weight.grad is None
    (True, False)
    """

    def __init__(
        self, losses: Mapping[str, Loss], student: nn.Module, teacher: nn.Module, example: Any, seed: int = 0
    ) -> None:
        super().__init__()
        if not losses:
            raise RecipeError("distillation needs a loss: name one, such as auto or logits")
        if unwrapped(student) is unwrapped(teacher):
            raise TaskError("the teacher is the student itself, from which nothing can be learned: give a copy")
        self.losses = dict(losses)
        self.pairs: dict[str, Pairs] = {
            name: paired(loss.layers, loss.reads, student, teacher, example)
            for name, loss in self.losses.items()
            if isinstance(loss, FeatureLoss)
        }
        self.projections = nn.ModuleDict()
        # In a tuple, for a submodule's parameters would be this module's.
        self._networks = student, teacher
        names = zip(*(pair for pairs in self.pairs.values() for pair in pairs), strict=True)
        sides = [list(dict.fromkeys(side)) for side in names] or [[], []]
        self._features = [Features(*side) for side in zip(self._networks, sides, strict=True)]
        self._prepare(example, seed)

    @property
    def task_share(self) -> float:
        """What the shares of the losses leave, at least 0."""
        return max(0.0, 1.0 - sum(loss.weight for loss in self.losses.values() if loss.share))

    def __enter__(self) -> "Distillation":
        for features in self._features:
            features.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for features in self._features:
            features.__exit__()

    def forward(self, output: Any, inputs: Any, target: Tensor | None = None) -> Tensor:
        """The weighted sum of ``parts``."""
        parts = self.parts(output, inputs, target)
        return torch.stack([self.losses[name].weight * part for name, part in parts.items()]).sum()

    def parts(self, output: Any, inputs: Any, target: Tensor | None = None) -> dict[str, Tensor]:
        """Each loss, by name, without its weight; the teacher runs on the inputs.

        Args:
            output: what the student has just returned.
            inputs: the arguments that it was called with, a tuple or a mapping of keyword arguments.
            target: the labels, for losses that read them.

        Raises:
            TaskError: the student did not run in ``with distillation:``; or as the losses raise.
        """
        ours = self._features[0].take()
        teacher = self._networks[1]
        with evaluating(teacher):
            taught = run(teacher, inputs)
        theirs = self._features[1].take()
        return {
            name: loss(self._read(name, output, ours, 0), self._read(name, taught, theirs, 1), target)
            for name, loss in self.losses.items()
        }

    def _read(self, loss: str, output: Any, results: Mapping[str, Any], side: int) -> Outputs:
        """What a loss reads of a network; the student's features are projected."""
        features = {}
        for k, pair in enumerate(self.pairs.get(loss, ())):
            value = self._value(loss, pair[side], results)
            if side == 0 and (key := f"{loss}_{k}") in self.projections:
                value = self.projections[key](value)
            features[_key(*pair)] = value
        return Outputs(output, features)

    def _value(self, loss: str, layer: str, results: Mapping[str, Any]) -> Tensor:
        reads_maps = getattr(self.losses[loss], "reads", "") == "attention"
        value = attention_of(results[layer]) if reads_maps else feature_of(results[layer])
        if value is None:
            maps = 'map of attention [batch, heads, queries, keys]: load the network with attn_implementation="eager"'
            wanted = maps if reads_maps else "feature [batch, …, width]: name another layer"
            raise RecipeError(f"{loss}: the layer {layer} returns no {wanted}")
        return value

    def _prepare(self, example: Any, seed: int) -> None:
        """Run both networks once to make the projections and check that everything fits."""
        outputs, results = [], []
        for network, features in zip(self._networks, self._features, strict=True):
            with features, evaluating(unwrapped(network)) as module:
                outputs.append(run(module, example))
                results.append(features.take())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, pairs in self.pairs.items():
                for k, pair in enumerate(pairs):
                    s, t = (self._value(name, n, r) for n, r in zip(pair, results, strict=True))
                    module = self.losses[name].projection(s.shape, t.shape)  # type: ignore[attr-defined]
                    if module is not None:
                        self.projections[f"{name}_{k}"] = module.to(s.device)
        with torch.no_grad():
            for name, loss in self.losses.items():
                loss.check(*(self._read(name, outputs[k], results[k], k) for k in range(2)))


def _key(student: str, teacher: str) -> str:
    return student if student == teacher else f"{student} → {teacher}"
