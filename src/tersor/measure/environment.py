"""The environment of a run: processor, instruction sets for low precision, versions."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tersor.measure.schema import Environment

CPUINFO = Path("/proc/cpuinfo")

# Instruction sets that determine speed and exactness of low precision: x86, then Arm, by their Linux names.
ISA = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
EXACT_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
PACKAGES = ("tersor", "torch", "openvino", "onnxruntime", "numpy")


def isa_flags(cpuinfo: str) -> tuple[str, ...]:
    """The instruction sets of `ISA` listed in the text of /proc/cpuinfo.

    >>> isa_flags("flags\\t\\t: fpu sse2 avx2 avx512_vnni")
    ('avx2', 'avx512_vnni')
    """
    flags = {
        word for line in cpuinfo.splitlines() if _key(line) in ("flags", "features") for word in line.split()
    }
    return tuple(name for name in ISA if name in flags)


def usable_processors() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exact_int8(isa: Iterable[str]) -> bool:
    """Whether uint8 × int8 products are summed in 32 bits; plain AVX2 adds pairs in 16 bits and saturates.

    >>> exact_int8(["avx2"]), exact_int8(["avx2", "avx_vnni"])
    (False, True)
    """
    return bool(EXACT_INT8 & set(isa))


def cpu_name(cpuinfo: str) -> str | None:
    """The processor's name, or None if neither /proc/cpuinfo nor Python knows it.

    >>> cpu_name("processor : 0\\nmodel name\\t: Example CPU @ 3 GHz")
    'Example CPU @ 3 GHz'
    """
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if _key(line) == "model name"]
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


def describe_environment(*, threads: int, precision: str, packages: Iterable[str] = PACKAGES) -> Environment:
    """Describe this machine; `threads` and `precision` are the engine's settings."""
    cpuinfo = CPUINFO.read_text() if CPUINFO.is_file() else ""
    return Environment(
        cpu=cpu_name(cpuinfo),
        isa=isa_flags(cpuinfo),
        threads=threads,
        precision=precision,
        versions=versions(packages),
        system=f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical processors",
    )


def _key(line: str) -> str:
    return line.partition(":")[0].strip().lower()
