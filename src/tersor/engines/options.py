"""Options of every engine and command, checked in one place: the number of threads and the float precision."""

import os
from typing import Any

from tersor.arguments import whole
from tersor.errors import EngineError

# The precisions of float operators that can be requested, and their printed names.
PRECISIONS = {"f32": "FP32", "bf16": "BF16"}


def most_threads() -> int:
    """The maximum number of threads: two for each logical processor of this machine."""
    return 2 * (os.cpu_count() or 1)


def check_threads(threads: Any) -> int | None:
    """A number of threads; None leaves the choice to the engine.

    Raises:
        EngineError: it is not a number of threads, or more than two for each logical processor.

    >>> check_threads(0)
    Traceback (most recent call last):
    tersor.errors.EngineError: threads is 0: it must be from 1 to ..., a whole number; ...
    """
    if threads is None:
        return None
    remedy = f"this machine has {os.cpu_count()} logical processors; leave it out for all that this process may use"
    return whole("threads", threads, 1, most_threads(), remedy, EngineError)


def threads_of(threads: Any) -> int:
    """The same; None means PyTorch's number of threads, or the maximum if that is less."""
    import torch

    return check_threads(threads) or min(torch.get_num_threads(), most_threads())


def check_precision(engine: Any, precision: Any) -> str:
    """A precision in which the engine computes float operators; an engine without ``precisions`` accepts all.

    Raises:
        EngineError: for any other, listing the engine's precisions.

    >>> from tersor.engines import ENGINES
    >>> check_precision(ENGINES["onnxruntime"], "bf16")
    Traceback (most recent call last):
    tersor.errors.EngineError: onnxruntime computes float operators in FP32, not in bf16: choose the precision f32
    """
    known = tuple(PRECISIONS) if engine is None else getattr(engine, "precisions", tuple(PRECISIONS))
    if not isinstance(precision, str) or precision not in known:
        said = precision if precision in tuple(PRECISIONS) else f"{precision!r:.80}"
        raise EngineError(
            f"{'an engine' if engine is None else engine.name} computes float operators in "
            f"{' or '.join(PRECISIONS[p] for p in known)}, not in {said}: choose the precision {' or '.join(known)}"
        )
    return precision


def check_options(engine: Any, threads: Any, precision: Any) -> None:
    """Check both; ``engine`` is an entry of the table, or None if it is not chosen yet."""
    check_threads(threads)
    check_precision(engine, precision)
