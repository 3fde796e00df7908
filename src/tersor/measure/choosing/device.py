"""One lock for what is timed on this machine, so that two candidates are never timed at once."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tersor.files import exclusively


@contextmanager
def alone_on_the_device() -> Iterator[None]:
    """Wait until no other search of this user times anything here, a minute at most; others wait meanwhile.

    >>> with alone_on_the_device():
    ...     pass
    """
    user = os.getuid() if hasattr(os, "getuid") else "device"  # Windows has no such number, and a folder for each user
    with exclusively(Path(tempfile.gettempdir()) / f"tersor-{user}.timing"):
        yield
