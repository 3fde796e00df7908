"""Process-wide state that other libraries change in passing, and its restoration."""

import logging
import os
import random
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

# What PyTorch's compiler writes into the environment when it is imported.
_COMPILER = "TORCHINDUCTOR_"
# The module that prints the graph of a failed export to standard error.
_EXPORT = "torch.export._trace"


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence warnings, logs of PyTorch's tracer and of ``loggers``, and graphs printed by torch.export, in the block.

    Filters of warnings, levels of loggers, the root logger and the environment are restored afterwards, whatever the
    code inside imported or left behind (OpenVINO's converter, which raises, leaves the root logger at ERROR), and even
    if several threads are inside at the same time.

    >>> with quiet():
    ...     warnings.warn("not shown", stacklevel=1)
    """
    with (
        logging_at(logging.CRITICAL, "torch.fx.experimental.symbolic_shapes", _EXPORT, *loggers),
        _while_inside("standard error", _graphs_dropped),
        _while_inside("warnings", _filters_kept),
        _while_inside("environment", _environment_kept),
        _while_inside("root logger", _root_logger_kept),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def logging_at(level: int, *loggers: str) -> Iterator[None]:
    """Set loggers to another level inside the block."""
    with ExitStack() as stack:
        for name in loggers:
            stack.enter_context(_while_inside(f"logger {name}", partial(_level_set, logging.getLogger(name), level)))
        yield


@contextmanager
def importing() -> Iterator[None]:
    """Wrap imports of other libraries, so that warning filters and Python's random numbers stay unchanged.

    rich draws a random number when it is imported, scipy and sympy add filters, PyTorch's compiler sets a variable.
    """
    before = random.getstate()
    try:
        with _while_inside("warnings", _filters_kept), _while_inside("environment", _environment_kept):
            yield
    finally:
        random.setstate(before)


@contextmanager
def offline() -> Iterator[None]:
    """The client of the Hugging Face hub, which transformers asks for files, uses no network inside the block."""
    with _while_inside("hub", _hub_offline):
        yield


class _WhileInside:
    """Changes to the process that last while any thread is inside: the first thread makes one, the last reverts it.

    Threads that each saved and restored the same state would restore each other's changes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._undo: dict[str, Callable[[], object]] = {}

    @contextmanager
    def __call__(self, name: str, change: Callable[[], Callable[[], object]]) -> Iterator[None]:
        """``change()`` makes the change called ``name`` and returns a function that reverts it."""
        with self._lock:
            if not self._inside[name]:
                self._undo[name] = change()
            self._inside[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[name] -= 1
                if not self._inside[name]:
                    self._undo.pop(name)()


_while_inside = _WhileInside()


def _filters_kept() -> Callable[[], object]:
    caught = warnings.catch_warnings()
    caught.__enter__()
    return lambda: caught.__exit__(None, None, None)


class _WithoutGraphs:
    """Standard error without what torch.export prints; output of the model and of other threads passes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        caller = sys._getframe()
        while caller.f_back is not None and caller.f_globals.get("__name__") == __name__:
            caller = caller.f_back  # past this method and its decorators, such as type checkers
        return len(text) if caller.f_globals.get("__name__") == _EXPORT else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _graphs_dropped() -> Callable[[], object]:
    before = sys.stderr
    if before is None:  # a program without a console
        return lambda: None
    sys.stderr = inside = _WithoutGraphs(before)

    def restore() -> None:
        if sys.stderr is inside:
            sys.stderr = before

    return restore


def _level_set(logger: logging.Logger, level: int) -> Callable[[], object]:
    before = logger.level
    logger.setLevel(level)
    return lambda: logger.setLevel(before)


def _root_logger_kept() -> Callable[[], object]:
    root = logging.root
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)

    def restore() -> None:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers

    return restore


def _environment_kept() -> Callable[[], object]:
    before = set(os.environ)

    def remove_new() -> None:
        for name in set(os.environ) - before:
            if name.startswith(_COMPILER):
                del os.environ[name]

    return remove_new


def _hub_offline() -> Callable[[], object]:
    try:
        from huggingface_hub import constants
    except ImportError:
        return lambda: None
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    return lambda: setattr(constants, "HF_HUB_OFFLINE", before)
