"""Installed engines, and the integer features of this CPU."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tersor.engines import ENGINES
from tersor.engines.targets import exact_int8, here
from tersor.measure.environment import describe_environment
from tersor.report.tables.grid import Column, Grid
from tersor.words import _, said, shown


def engines_table() -> RenderableType:
    """A table of engines with versions or install commands, and a description of the CPU."""
    grid = Grid(Column(_("engine")), Column(_("version")), Column(_("what it is"), sentences=True))
    for name, engine in ENGINES.items():
        version = engine.version() or _("not installed; run: {command}", command=engine.install)
        grid.add(name, version, shown(engine.summary))
    found = describe_environment(threads=1, precision="f32", packages=())
    isa = " ".join(found.isa) or _("no vector instructions known")
    words = [
        "\n" + _("CPU: {name} ({isa})", name=found.cpu or _("unknown"), isa=isa),
        _("Plans are made for it as for the target {target}. {meaning}", target=here().name,
          meaning=shown(meaning(found.isa))),
    ]  # fmt: skip
    return Group(grid, *(Text(w) for w in words))


def engines_data() -> dict[str, Any]:
    """The same as plain values."""
    found = describe_environment(threads=1, precision="f32", packages=())
    engines = [
        {"name": name, "version": engine.version(), "install": engine.install, "summary": engine.summary}
        for name, engine in ENGINES.items()
    ]
    return {
        "engines": engines,
        "cpu": found.cpu,
        "isa": list(found.isa),
        "target": here().name,
        "int8": meaning(found.isa),
    }


def meaning(isa: tuple[str, ...]) -> str:
    """Describe what the instruction sets mean for int8.

    >>> meaning(("avx2",)).split(":")[0]
    'No VNNI'
    """
    if "amx_int8" in isa:
        return said(
            "AMX and VNNI: int8 products are exact, and matrix units compute them several times faster than FP32."
        )
    if exact_int8(isa):
        return said(
            "VNNI: int8 products are exact, and an instruction computes about four times as many as in FP32."
        )
    if isa:
        return said(
            "No VNNI: u8·s8 kernels add pairs of products in 16 bits, which saturate silently. Tersor limits "
            "weights to 7 bits on such CPUs; expect little speed-up over FP32."
        )
    return said(
        "The instruction set is unknown (not Linux?), so weights are limited to 7 bits, which is safe on every CPU."
    )
