"""The environment of a run: processor, instruction sets for low precision, versions."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from tersor.engines import ENGINES
from tersor.engines.targets import cpuinfo, isa_flags
from tersor.measure.schema import Environment

_LIBRARIES = (library.partition(".")[0] for engine in ENGINES.values() for library in engine.libraries)
PACKAGES = tuple(dict.fromkeys(("tersor", "torch", *_LIBRARIES, "numpy")))


def usable_processors() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name(text: str) -> str | None:
    """The processor's name, or None if neither /proc/cpuinfo nor Python knows it.

    >>> cpu_name("processor : 0\\nmodel name\\t: Example CPU @ 3 GHz")
    'Example CPU @ 3 GHz'
    """
    names = [line.partition(":")[2].strip() for line in text.splitlines() if _key(line) == "model name"]
    return next(iter(names), None) or platform.processor() or None


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python and of the installed packages among ``packages``."""
    installed = {"python": platform.python_version()}
    for name in packages:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def describe_environment(
    *, threads: int, precision: str, packages: Iterable[str] = PACKAGES, target: str | None = None
) -> Environment:
    """Describe this machine; `threads` and `precision` are the engine's settings, `target` is the plan's target."""
    text = cpuinfo()
    return Environment(
        cpu=cpu_name(text),
        isa=isa_flags(text),
        threads=threads,
        precision=precision,
        versions=versions(packages),
        system=f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical processors",
        target=target,
    )


def _key(line: str) -> str:
    return line.partition(":")[0].strip().lower()
