"""The environment of a run: processor, instruction sets for low precision, versions."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from tersor.engines import ENGINES
from tersor.engines.targets import cpuinfo, isa_flags
from tersor.measure.schema import Environment

if TYPE_CHECKING:
    import torch

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


def device_name(device: "torch.device") -> str:
    """The kind of a device, and for an accelerator its name: ``cpu``, ``cuda (NVIDIA H200)``.

    >>> import torch
    >>> device_name(torch.device("cpu"))
    'cpu'
    """
    if device.type == "cpu":
        return device.type
    import torch

    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return f"{device.type} ({named(device)})" if named else device.type


def describe_environment(
    *,
    threads: int,
    precision: str,
    packages: Iterable[str] = PACKAGES,
    target: str | None = None,
    device: "torch.device | None" = None,
) -> Environment:
    """Describe this machine.

    Args:
        threads, precision: the engine's settings; target: the plan's; device: where weights were solved.
    """
    text = cpuinfo()
    return Environment(
        cpu=cpu_name(text),
        isa=isa_flags(text),
        threads=threads,
        precision=precision,
        versions=versions(packages),
        system=f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical processors",
        target=target,
        device="cpu" if device is None else device_name(device),
    )


def _key(line: str) -> str:
    return line.partition(":")[0].strip().lower()
