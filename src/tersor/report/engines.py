"""Installed engines, and the integer features of this CPU."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.engines import ENGINES
from tersor.engines.targets import exact_int8, here
from tersor.measure.environment import describe_environment


def engines_table() -> RenderableType:
    """A table of engines with versions or install commands, and a description of the CPU."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("engine", "version", "what it is"):
        table.add_column(column)
    for name, engine in ENGINES.items():
        table.add_row(name, engine.version() or f"not installed; run: {engine.install}", engine.summary)
    found = describe_environment(threads=1, precision="f32", packages=())
    words = [
        f"\nCPU: {found.cpu or 'unknown'} ({' '.join(found.isa) or 'no vector instructions known'})",
        f"Plans are made for it as for the target {here().name}. {meaning(found.isa)}",
    ]
    return Group(table, *(Text(w) for w in words))


def meaning(isa: tuple[str, ...]) -> str:
    """Describe what the instruction sets mean for int8.

    >>> meaning(("avx2",)).split(":")[0]
    'No VNNI'
    """
    if "amx_int8" in isa:
        return "AMX and VNNI: int8 products are exact, and matrix units compute them several times faster than FP32."
    if exact_int8(isa):
        return (
            "VNNI: int8 products are exact, and an instruction computes about four times as many as in FP32."
        )
    if isa:
        return (
            "No VNNI: u8·s8 kernels add pairs of products in 16 bits, which saturate silently. Tersor limits "
            "weights to 7 bits on such CPUs; expect little speed-up over FP32."
        )
    return "The instruction set is unknown (not Linux?), so weights are limited to 7 bits, which is safe on every CPU."
