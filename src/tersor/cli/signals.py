"""Signals that end a command end it as Ctrl-C does: what it was doing is undone. Only the command line sets them."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

# Asked to end, and the terminal was closed; Windows has no SIGHUP.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ended(KeyboardInterrupt):
    """A signal asked the command to end."""


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise ``Ended``; at the end the handlers are those of before.

    The exit code is 128 and the number of the signal, as shells give it. A signal that is ignored, as by `nohup`, stays
    ignored, and so is a second one while the first is seen to.
    """
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise Ended

    # None is a handler that Python did not set and cannot put back.
    found = {one: signal.getsignal(one) for one in _ENDING}
    before = {one: handler for one, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    for one in before:
        signal.signal(one, end)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if not received:
            raise
        sys.exit(128 + received[0])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
