"""One piece of work at a time per process, in a fixed PyTorch state, whatever the caller's state is."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# torch.export, warning filters and the default dtype are global to the process, and timing needs it undisturbed.
_TURN = threading.RLock()


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """The function, wrapped to take its ``turn``: it waits while another thread is in such a function.

    >>> in_turn(abs)(-3)
    3
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with turn():
            return function(*args, **kwargs)

    return call


@contextmanager
def turn() -> Iterator[None]:
    """Wait for other threads; inside, PyTorch has its defaults, and afterwards the caller's settings are restored.

    Of the caller's state, the following has no effect inside: the default dtype and device, deterministic algorithms,
    inference and gradient mode, autocast, float32 matmul precision. Afterwards the random number generators of Python,
    NumPy and PyTorch continue as if nothing had been drawn. A thread may take a turn within its own.

    >>> import torch
    >>> with torch.inference_mode(), turn():
    ...     print(torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_default_dtype())
    False True torch.float32
    """
    with _TURN, _defaults():
        yield


@contextmanager
def _defaults() -> Iterator[None]:
    import numpy
    import torch

    dtype, products = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with ExitStack() as state, torch.random.fork_rng(devices=[]):
        state.callback(random.setstate, random.getstate())
        state.callback(numpy.random.set_state, numpy.random.get_state())
        # Only where it differs: each change has its own cost or side effect.
        if dtype != torch.float32:
            state.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if strict:
            state.callback(torch.use_deterministic_algorithms, strict, warn_only=warn)
            torch.use_deterministic_algorithms(False)
        if products != "highest":
            state.callback(torch.set_float32_matmul_precision, products)
            torch.set_float32_matmul_precision("highest")
        if torch.get_default_device() != torch.device("cpu"):
            state.enter_context(torch.device("cpu"))
        accelerator = torch.accelerator.current_accelerator()
        for kind in ("cpu", *([accelerator.type] if accelerator else [])):
            if torch.is_autocast_enabled(kind):
                state.enter_context(torch.autocast(kind, enabled=False))
        state.enter_context(torch.inference_mode(False))
        state.enter_context(torch.enable_grad())
        yield
