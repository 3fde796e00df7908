"""Whether a model runs its example, and whether the example has a batch dimension."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import CaptureError, TersorError
from tersor.network.explain import location, summary
from tersor.network.structure import Structure

Change = Callable[[Tensor], Tensor]


def check_example(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> None:
    """Run the model on a copy of its example.

    Raises:
        CaptureError: no tensor of the example has a dimension, or the model raises; the message names the inputs, their
            shapes and, if only the batch dimension is missing, the shapes with it. Or it returns no tensor.
    """
    tensors = [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]
    if not any(x.ndim for x in tensors):
        told = _shapes(model, values, names) or "no tensor"
        raise CaptureError(
            f"Task.example has no batch dimension: {told}; the first dimension of an input is the batch, so give "
            "tensors of shape (1, …)"
        )
    try:
        found = _call(model, values, names)
    except TersorError:
        raise
    except SystemExit as error:
        raise CaptureError(f"the model calls sys.exit({error.code!r:.80}) in forward(): take that out") from error
    except Exception as error:
        if lacks_batch(model, values, names):
            raise no_batch(model, values, names) from error
        line = f" Offending line: {found}." if (found := location(error)) else ""
        raise CaptureError(
            f"the model itself cannot run Task.example ({_shapes(model, values, names)}): {type(error).__name__}: "
            f"{summary(error).removesuffix('.')}.{line} Give an example that the model runs; the first dimension of "
            "every tensor is the batch"
        ) from error
    _check_results(model, found)


def _check_results(model: nn.Module, results: Any) -> None:
    """Reject results without a tensor; unknown structures are rejected during capture."""
    try:
        count = Structure.of(results)[0].count
    except CaptureError:
        return
    if not count:
        raise CaptureError(
            f"{type(model).__name__} returns {results!r:.80} for Task.example, a {type(results).__name__} without a "
            "tensor: let forward() return the tensors that it computes"
        )


def lacks_batch(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> bool:
    """Whether the model takes the example with a dimension before its first, but not a longer first dimension.

    >>> layer = nn.Linear(4, 2).eval()
    >>> lacks_batch(layer, (torch.zeros(4),), ()), lacks_batch(layer, (torch.zeros(1, 4),), ())
    (True, False)
    """
    plain = _outputs(model, values, names, lambda x: x)
    longer = _outputs(model, values, names, lambda x: torch.cat([x, x]))
    stacked = _outputs(model, values, names, lambda x: torch.stack([x, x]))
    if not stacked or (plain and _twice_as_long(plain, longer)):
        return False
    return not plain or [x.shape for x in stacked] == [(2, *x.shape) for x in plain]


def no_batch(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> CaptureError:
    """The error for an example without a batch dimension."""
    batched = _changed(values, lambda x: x.unsqueeze(0))
    return CaptureError(
        f"Task.example has no batch dimension: {_shapes(model, values, names)}; the first dimension of an input is the "
        f"batch, and the model takes {_shapes(model, batched, names)}: write x.unsqueeze(0) in the example, and give "
        "calibration batches of this form"
    )


def _outputs(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...], change: Change) -> list[Tensor]:
    """The tensors that the model returns for a changed example; none if it raises."""
    try:
        found = _call(model, _changed(values, change), names)
    except Exception:  # anything the model raises
        return []
    return [x for x in pytree.tree_leaves(found) if isinstance(x, Tensor)]


def _twice_as_long(before: list[Tensor], after: list[Tensor]) -> bool:
    wanted = [(2 * x.shape[0], *x.shape[1:]) for x in before if x.ndim]
    return wanted == [x.shape for x in after if x.ndim]


def _changed(values: tuple[Any, ...], change: Change) -> tuple[Any, ...]:
    return pytree.tree_map_only(Tensor, lambda x: change(x) if x.ndim else x, values)


def _call(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> Any:
    # A model may write into its inputs, and draw random numbers.
    copies = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), values)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return model(**dict(zip(names, copies, strict=True))) if names else model(*copies)


def _shapes(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> str:
    """The inputs with the shapes of their tensors, such as ``x of shape (3, 16, 16)``."""
    known = names or tuple(inspect.signature(model.forward).parameters)
    told = []
    for k, value in enumerate(values):
        shapes = [str(tuple(x.shape)) for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]
        name = known[k] if k < len(known) and known[k] not in ("args", "kwargs") else f"input {k}"
        told += [f"{name} of shape {', '.join(shapes)}"] if shapes else []
    return "; ".join(told)
