"""Optimizers by name, the groups of parameters that they train, and the course of the learning rate."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Lt
from torch import nn
from torch.optim import Optimizer

from tersor.errors import TaskError
from tersor.training.proximal.parameters import check_inner, parameters_of
from tersor.user_code import users

Groups = list[dict[str, Any]]


@runtime_checkable
class OptimizerEntry(Protocol):
    """An entry of OPTIMIZERS: a frozen dataclass whose fields are its options."""

    def __call__(self, groups: Groups, rate: float) -> Optimizer:
        """The optimizer of these groups of parameters."""
        ...


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999

    def __call__(self, groups: Groups, rate: float) -> Optimizer:
        return torch.optim.AdamW(groups, lr=rate, betas=(self.beta1, self.beta2))


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with Nesterov's momentum."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9

    def __call__(self, groups: Groups, rate: float) -> Optimizer:
        return torch.optim.SGD(groups, lr=rate, momentum=self.momentum, nesterov=self.momentum > 0)


OPTIMIZERS: dict[str, type[OptimizerEntry]] = {"adamw": AdamW, "sgd": Sgd}
"""All optimizers by name."""


def is_of_quantizer(name: str) -> bool:
    """Whether a parameter is a quantizer's scale or offset."""
    return name.startswith("quantizers.")


def grouped(
    parameters: Iterable[tuple[str, nn.Parameter]], rate: float, scale_rate: float | None, weight_decay: float
) -> Groups:
    """Weights with decay; biases, norms and whatever has one dimension without; the quantizers' parameters apart.

    >>> groups = grouped(nn.Linear(2, 3).named_parameters(), 0.1, None, 0.01)
    >>> [(len(g["params"]), g["weight_decay"]) for g in groups]
    [(1, 0.01), (1, 0.0)]
    """
    of_scales = rate if scale_rate is None else scale_rate
    rates = {"weights": (rate, weight_decay), "vectors": (rate, 0.0), "scales": (of_scales, 0.0)}
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = {kind: [] for kind in rates}
    for name, parameter in parameters:
        if parameter.requires_grad:
            kind = "scales" if is_of_quantizer(name) else "weights" if parameter.ndim > 1 else "vectors"
            kinds[kind].append((name, parameter))
    return [
        {"params": found, "lr": rates[kind][0], "weight_decay": rates[kind][1]}
        for kind, found in kinds.items()
        if found
    ]


def users_own(hook: Callable[..., Any], named: list[tuple[str, nn.Parameter]]) -> tuple[Optimizer, list[str]]:
    """The optimizer that the task's ``optimizer(named_parameters)`` returns, and the parameters that it leaves out.

    Raises:
        TaskError: it raises, or returns something else, or an optimizer of other parameters.
        RecipeError: an optimizer that needs several gradients a step.
    """
    remedy = "return a torch optimizer of the parameters that it is given"
    with users("optimizer(named_parameters)", TaskError, remedy):
        found = hook(list(named))
    if not isinstance(found, Optimizer):
        raise TaskError(f"optimizer(named_parameters) returned a {type(found).__name__}: {remedy}")
    check_inner(found)
    own = {id(p): name for name, p in named}
    held = {id(p): p for p in parameters_of(found.param_groups)}
    if other := [p for key, p in held.items() if key not in own]:
        raise TaskError(
            f"optimizer(named_parameters) returned an optimizer of {len(other)} other parameters, the first of shape "
            f"{list(other[0].shape)}: {remedy}, not of the model's own"
        )
    return found, [name for key, name in own.items() if key not in held]


def cosine(steps: int, warmup: float, restart: int | None = None) -> Callable[[int], float]:
    """The factor of the learning rate at each step: a linear rise over a share of the steps, then a cosine to 0.

    Args:
        restart: the step at which the course begins anew, over the steps that are left.

    >>> factor = cosine(10, 0.2)
    >>> [round(factor(k), 2) for k in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if restart is not None:
        first, again = cosine(restart, warmup), cosine(steps - restart, warmup)
        return lambda step: first(step) if step < restart else again(step - restart)
    rise = math.ceil(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor
