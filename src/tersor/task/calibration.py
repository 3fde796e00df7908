"""One pass over the calibration data: read from the user's function, with every batch checked against the example."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import CalibrationError
from tersor.numerics import all_finite
from tersor.user_code import users

# The maximum number of samples in a pass over an iterable without a length, which may be endless.
MAX_SAMPLES = 4096
_END = object()


class Passes:
    """The iterators that a calibration function has returned: none may come twice, since it would resume midway."""

    def __init__(self) -> None:
        self._given: list[Callable[[], Any]] = []

    def check(self, iterator: Any, name: str) -> None:
        """Reject an iterator that was read before."""
        self._given = [given for given in self._given if given() is not None]
        if any(given() is iterator for given in self._given):
            raise CalibrationError(
                f"{name}() returned the same {type(iterator).__name__} again, which was read before: let "
                f"{name} be a function that makes a fresh iterable at every call"
            )
        try:
            self._given.append(weakref.ref(iterator))
        except TypeError:  # as with most iterators written in C
            self._given.append(lambda: iterator)


def read(
    calibration: Callable[[], Iterable[Any]], passes: Passes, name: str = "calibration"
) -> tuple[Iterator[Any], bool]:
    """A fresh iterator over what ``calibration()`` returns, and whether it has a length.

    Args:
        name: of the function, for errors.

    Raises:
        CalibrationError: what it raises or returns, with the remedy; the iterator names the batch.
    """
    debug = f"run through {name}() on its own to debug it"
    with users(f"{name}()", CalibrationError, debug):
        iterable = calibration()
    alone = isinstance(iterable, (str, bytes, Mapping))
    try:
        iterator = None if alone else iter(iterable)
    except TypeError:
        iterator = None
    except Exception:  # raised by the user's own __iter__
        with users(f"{name}()", CalibrationError, debug):
            raise
    if iterator is None:
        raise CalibrationError(
            f"{name}() returned {'a ' if alone else ''}{type(iterable).__name__}: return an iterable of batches, "
            "each the tuple of the model's arguments; for one batch write [(x,)]"
        )
    passes.check(iterator, name)
    return _numbered(iterator, debug), _tells_length(iterable)


def _numbered(iterator: Iterator[Any], debug: str) -> Iterator[Any]:
    number = 0
    while True:
        with users(f"calibration batch {number}", CalibrationError, debug):
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch
        number += 1


def _tells_length(iterable: Any) -> bool:
    try:
        return isinstance(iterable, Sized) and len(iterable) >= 0
    except Exception:  # a DataLoader of a dataset without length
        return False


def check_count(samples: int, most: int | None, sized: bool) -> None:
    """Reject more samples than a pass may have.

    Raises:
        CalibrationError: with the bound and the remedy.
    """
    bound = most or (None if sized else MAX_SAMPLES)
    if bound is not None and samples > bound:
        end = "" if sized else ", and does not tell its length: it may have no end"
        raise CalibrationError(
            f"calibration() gave more than {bound} samples{end}. Take fewer, as by itertools.islice (100 to 1,000 "
            f"calibrate a network), or allow more with Task(max_samples={2 * samples})"
        )


def mask_of(function: Callable[..., Any], arguments: Any, rows: int) -> Tensor:
    """The bool [batch, length] that a ``token_mask`` returns for the arguments of one batch with this number of rows.

    Raises:
        CalibrationError: it raises, or returns something else.
    """
    with users("token_mask", CalibrationError, "call it on a batch to debug it"):
        mask = function(*arguments)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != rows:
        found = f"the shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise CalibrationError(f"token_mask returned {found}: return a bool tensor [batch, length], here [{rows}, …]")
    return mask.bool()


def batch_size(inputs: tuple[Any, ...]) -> int:
    """The first dimension of the first tensor among ``inputs``; 1 if no tensor has a dimension."""
    return next((int(x.shape[0]) for x in inputs if isinstance(x, Tensor) and x.ndim), 1)


def with_tensors(inputs: list[Any], example: list[Any], number: int) -> list[Any]:
    """Calibration batch ``number`` with tensors for its NumPy arrays.

    NumPy computes in float64 and counts in any integers: floats become floats of the example's dtype, and integers its
    integers where these hold them. Whatever else differs from the example is refused by ``check_batch``.

    Raises:
        CalibrationError: an array of a dtype that PyTorch has not.

    >>> with_tensors([np.zeros((1, 2))], [torch.zeros(1, 2)], 0)
    [tensor([[0., 0.]])]
    """
    where, wanted = f"calibration batch {number}", [*example, *[None] * len(inputs)]
    return [
        _tensor(x, wanted[k], f"{where}, argument {k}") if isinstance(x, np.ndarray) else x
        for k, x in enumerate(inputs)
    ]


def _tensor(array: np.ndarray, example: Any, where: str) -> Tensor:
    try:
        # A copy in the machine's byte order, which may be written.
        tensor = torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))
    except (TypeError, ValueError) as error:
        raise CalibrationError(
            f"{where}: an array of {array.dtype}, which PyTorch has not; convert it, as by x.astype('float32')"
        ) from error
    if not isinstance(example, Tensor) or tensor.is_floating_point() != example.is_floating_point():
        return tensor
    held = tensor.to(example.dtype)
    whole = not {torch.bool, torch.complex64, torch.complex128} & {tensor.dtype, example.dtype}
    return held if tensor.is_floating_point() or (whole and torch.equal(held.to(tensor.dtype), tensor)) else tensor


def check_batch(inputs: list[Any], example: list[Any], number: int) -> None:
    """Check calibration batch ``number`` against the example.

    Raises:
        CalibrationError: naming the batch, the argument and the value.
    """
    where = f"calibration batch {number}"
    if len(inputs) != len(example):
        raise CalibrationError(
            f"{where} has {len(inputs)} arguments, the example has {len(example)}; a batch is the tuple of "
            "the model's arguments, without labels: from a DataLoader of pairs, "
            "`lambda: ((x,) for x, label in loader)`"
        )
    for k, (x, e) in enumerate(zip(inputs, example, strict=True)):
        if isinstance(e, Tensor):
            _check_tensor(x, e, f"{where}, argument {k}")
        elif isinstance(x, Tensor) or not _same(x, e):
            raise CalibrationError(
                f"{where}, argument {k}: {x!r:.80}, the example has {e!r:.80}; a value that is not a tensor becomes "
                "a constant of the captured network and must be the same in every batch"
            )
    _check_rows(inputs, example, where)


def _same(value: Any, wanted: Any) -> bool:
    try:
        return bool(value == wanted)
    except Exception:  # an array has no truth value
        return False


def _check_tensor(x: Any, e: Tensor, where: str) -> None:
    if not isinstance(x, Tensor):
        raise CalibrationError(f"{where}: expected a tensor or an array, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise CalibrationError(f"{where}: the layout {x.layout}; give a dense tensor, x.to_dense()")
    if x.dtype != e.dtype:
        raise CalibrationError(f"{where}: dtype {x.dtype}, the example has {e.dtype}; convert one of them")
    if x.device != e.device:
        raise CalibrationError(f"{where}: on {x.device}, the example is on {e.device}; move one of them")
    if x.ndim != e.ndim:
        remedy = "; the first one is the batch: give x.unsqueeze(0), or several samples at once by torch.stack"
        raise CalibrationError(
            f"{where}: shape {tuple(x.shape)} has {x.ndim} dimensions, the example {tuple(e.shape)} has {e.ndim}"
            + (remedy if x.ndim < e.ndim else "; give both in the form that the model takes")
        )
    if x.ndim == 4 and x.shape[1] != e.shape[1]:
        raise CalibrationError(
            f"{where}: {x.shape[1]} channels in shape {tuple(x.shape)}, the example {tuple(e.shape)} has {e.shape[1]}"
        )
    if 0 in x.shape:
        raise CalibrationError(f"{where}: shape {tuple(x.shape)}, without a value; leave empty batches out")
    if x.is_floating_point() and not all_finite(x):
        raise CalibrationError(
            f"{where}: {int((~torch.isfinite(x)).sum())} values are NaN or infinite; clean the calibration data"
        )


def _check_rows(inputs: list[Any], example: list[Any], where: str) -> None:
    """Check that tensors with the same number of rows in the example have the same number in the batch."""
    rows, wanted = ({int(x.shape[0]) for x in part if isinstance(x, Tensor) and x.ndim} for part in (inputs, example))
    if len(wanted) == 1 and len(rows) > 1:
        raise CalibrationError(
            f"{where}: tensors of {', '.join(map(str, sorted(rows)))} rows; the first dimension of every tensor is the "
            "batch, and must be the same"
        )
