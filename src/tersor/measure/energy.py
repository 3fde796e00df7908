"""Energy per call from Linux powercap (RAPL), if the machine allows reading it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Zone:
    """One processor package: a counter in microjoules that wraps around at `span`."""

    path: Path
    span: int

    def read(self) -> int:
        """The current counter, in microjoules."""
        return int((self.path / "energy_uj").read_text())


def zones(root: Path = POWERCAP) -> list[Zone]:
    """The packages with a readable counter; none in most virtual machines and for most users."""
    readable = []
    # intel-rapl:0 is a package (on AMD too); intel-rapl:0:1 is a part of it and would count twice.
    for path in sorted(root.glob("intel-rapl:*")):
        try:
            if path.name.count(":") == 1 and (path / "name").read_text().startswith("package"):
                zone = Zone(path, int((path / "max_energy_range_uj").read_text()))
                zone.read()
                readable.append(zone)
        except (OSError, ValueError):
            continue
    return readable


def joules_per_call(
    call: Callable[[], object], *, min_time: float = 1.0, root: Path = POWERCAP
) -> float | None:
    """Joules that the whole package consumed per call, over at least `min_time` seconds; None if unreadable.

    This includes the package's idle consumption and other work on the machine.
    """
    packages = zones(root)
    if not packages:
        return None
    call()
    before = [zone.read() for zone in packages]
    calls, end = 0, perf_counter() + min_time
    while True:
        call()
        calls += 1
        if perf_counter() >= end:
            break
    spent = sum((zone.read() - start) % (zone.span + 1) for zone, start in zip(packages, before, strict=True))
    return spent / 1e6 / calls
