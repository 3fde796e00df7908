"""Whether the user's code leaves the model unchanged."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tersor.errors import TaskError


@contextmanager
def unchanged(model: nn.Module, who: str) -> Iterator[None]:
    """Wrap a call to ``who``, user code that must not change the model.

    Raises:
        TaskError: a parameter, a buffer or the mode of a module has changed afterwards, with its name.

    >>> net = nn.Linear(2, 1)
    >>> with unchanged(net, "evaluate"):
    ...     _ = net.bias.data.zero_()
    Traceback (most recent call last):
    tersor.errors.TaskError: evaluate changed the model's bias, so that what is measured ...
    """
    before = _state(model)
    yield
    after = _state(model)
    found = [name for name in (*before, *(n for n in after if n not in before)) if before.get(name) != after.get(name)]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise TaskError(
            f"{who} changed the model's {found[0]}{more}, so that what is measured is not what was given: call "
            "`predict` alone there, or work on copy.deepcopy(model)"
        )


def _state(model: nn.Module) -> dict[str, object]:
    """A checksum of every parameter and buffer, and the mode of every module, by name."""
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    tensors = {name: _checksum(tensor) for name, tensor in named}
    return tensors | {f"{name or 'own'} mode (train or eval)": m.training for name, m in model.named_modules()}


def _checksum(tensor: Tensor) -> object:
    if is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
        return None
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return tuple(tensor.shape), tensor.dtype, zlib.crc32(raw.numpy().data)
