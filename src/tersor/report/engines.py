"""Which engines are here, and what this CPU can do with integers."""

import importlib

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.engines import ENGINES
from tersor.measure.environment import describe_environment, exact_int8


def engines_table() -> RenderableType:
    """The engines with their versions or the command that installs them, and the CPU in words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("engine", "version", "what it is"):
        table.add_column(column)
    for name, (module, command) in ENGINES.items():
        version = importlib.import_module(module).version()
        table.add_row(name, version or f"not installed; run: {command}", _WHAT[name])
    here = describe_environment(threads=1, precision="f32", packages=())
    words = [
        f"\nCPU: {here.cpu or 'unknown'} ({' '.join(here.isa) or 'no vector instructions known'})",
        meaning(here.isa),
    ]
    return Group(table, *(Text(w) for w in words))


_WHAT = {
    "openvino": "int8 on x86 and ARM CPUs; the default",
    "onnxruntime": "int8 on x86 and ARM CPUs; a QDQ ONNX file that travels",
    "torch": "simulation: every format, no speed-up",
    "tensorrt": "explicit QDQ ONNX for NVIDIA's TensorRT; checked here, built there",
}


def meaning(isa: tuple[str, ...]) -> str:
    """What the instruction set means for int8.

    >>> meaning(("avx2",)).split(":")[0]
    'No VNNI'
    """
    if "amx_int8" in isa:
        return "AMX and VNNI: int8 products are exact, and matrix units compute them several times faster than FP32."
    if exact_int8(isa):
        return (
            "VNNI: int8 products are exact and about four times as many fit into one instruction as in FP32."
        )
    if isa:
        return (
            "No VNNI: u8·s8 kernels add pairs of products in 16 bits, which saturate without a word. Tersor keeps "
            "weights to 7 bits here; expect little speed-up over FP32."
        )
    return "The instruction set is not known (not Linux?), so weights keep to 7 bits, which is right on every CPU."
