"""What went wrong in a step of training, named: values that are not finite, parameters that a loss does not reach."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import NumericsError, TaskError
from tersor.training.objective import NO_GRADIENT, Objective, Passing
from tersor.words import said

_REMEDY = "lower `rate`, or set `clip: 1`"


def spoiled(value: Any) -> bool:
    """Whether a tensor holds NaN or +∞; −∞ is a mask's."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    return bool((torch.isnan(value) | torch.isposinf(value.real)).any())


def not_finite(student: nn.Module, objective: Objective, batch: Any, step: int, value: float) -> NumericsError:
    """The error of a loss that is not finite, with the first cause: the batch, a weight, a layer, the teacher, or
    the loss itself.

    The layer is found by running the network again, operator by operator.

    Args:
        batch: as ``train()`` yielded it.
        step: from 1.
        value: the loss.
    """
    start = f"the loss of step {step} is {value}"
    for k, tensor in enumerate(t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)):
        if spoiled(tensor):
            return NumericsError(f"{start}: tensor {k} {list(tensor.shape)} of its batch holds NaN or infinity")
    if (name := first_spoiled_tensor(student.named_parameters())) is not None:
        return NumericsError(f"{start}: {name} holds NaN or infinity since the step before; {_REMEDY}")
    with _teaching(objective) as taught:
        found = first_spoiled(student, lambda model: objective(model, batch))
    if found is not None:
        return NumericsError(f"{start}: the first NaN or infinite value is that of the layer {found}; {_REMEDY}")
    if any(spoiled(t) for t in pytree.tree_leaves(taught)):
        return NumericsError(
            f"{start}: the teacher returned NaN or infinity for its batch, which the student did not: check the "
            "teacher's weights, or give another Task.teacher"
        )
    look = "loss(model, batch)" if objective.loss is not None else "the losses of `distill` and their options"
    return NumericsError(f"{start}, though every value of the network is finite: look at {look}")


@contextmanager
def _teaching(objective: Objective) -> Iterator[list[Any]]:
    """What the teacher returns inside the block."""
    found: list[Any] = []
    if objective.distillation is None:
        yield found
        return
    teacher = objective.distillation._networks[1]
    handle = teacher.register_forward_hook(lambda module, args, result: found.append(result))
    try:
        yield found
    finally:
        handle.remove()


def first_spoiled(student: nn.Module, run: Callable[[nn.Module], Any]) -> str | None:
    """The name of the first operator whose value is NaN or infinite, if the student can be watched."""
    if not hasattr(student, "watched"):
        return None
    model = _Watched(student)
    with suppress(Exception), torch.no_grad():
        run(model)
    return model.found[0] if model.found else None


class _Watched(Passing):
    """The student, run operator by operator."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__(student)
        self.found: list[str] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student's result."""

        def see(name: str, value: Any) -> None:
            if any(spoiled(t) for t in pytree.tree_leaves(value)):
                self.found.append(name)

        return self.inner.watched(see, *args, **kwargs)  # type: ignore[operator]


def check_weights(student: nn.Module, step: int) -> None:
    """Raise NumericsError if the update of a step made a weight NaN or infinite."""
    # Other buffers are constants, such as a mask of infinities.
    statistics = [(n, t) for n, t in student.named_buffers() if n.rpartition(".")[2].startswith("running_")]
    if (name := first_spoiled_tensor((*student.named_parameters(), *statistics))) is not None:
        raise NumericsError(f"the update of step {step} made {name} NaN or infinite: {_REMEDY}")


def check_gradients(named: Iterable[tuple[str, Tensor]], step: int) -> None:
    """Raise NumericsError if a gradient is NaN or infinite."""
    found = [(name, p.grad) for name, p in named if p.grad is not None]
    if bool(torch.isfinite(torch.nn.utils.get_total_norm([gradient for _, gradient in found]))):
        return
    # Finite gradients may have a norm that is not.
    name = next((name for name, gradient in found if not bool(torch.isfinite(gradient).all())), None)
    if name is None:
        return
    raise NumericsError(
        f"the gradient of {name} is NaN or infinite in step {step}, though the loss is finite: {_REMEDY}, or look for "
        "a root, a norm or a logarithm of 0 in the loss"
    )


def check_reached(parameters: Iterable[Tensor], loss: Tensor) -> None:
    """Raise TaskError if a loss has no gradient, or depends on none of the parameters."""
    if not loss.requires_grad:
        raise TaskError(NO_GRADIENT)
    leaves = {id(leaf) for leaf in _leaves(loss)}
    if not any(id(p) in leaves for p in parameters):
        raise TaskError(
            "the loss depends on no parameter of the network: let loss(model, batch) call the model that it is given"
        )


def untouched(student: nn.Module) -> list[str]:
    """Notes on parameters that stay: frozen ones, and those without a gradient behind the first backward pass."""
    named = list(student.named_parameters())
    frozen = [name for name, p in named if not p.requires_grad]
    lost = [name for name, p in named if p.requires_grad and p.grad is None]
    notes = []
    if frozen:
        notes.append(said("{names} stayed as they were, frozen in the model", names=listed(frozen)))
    if lost:
        notes.append(said("the loss does not depend on {names}, which stayed as they were", names=listed(lost)))
    return notes


def listed(names: list[str]) -> str:
    """The first names."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def first_spoiled_tensor(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in named if spoiled(tensor.detach())), None)


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors that a value was computed from, by the graph of its gradient."""
    seen, waiting = set[Any](), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        waiting.extend(parent for parent, _ in node.next_functions)
