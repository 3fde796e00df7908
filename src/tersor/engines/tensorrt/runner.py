"""The file for TensorRT, computed in ONNX Runtime for comparison."""

from pathlib import Path
from typing import Any

from tersor.engines.base import Executed
from tersor.engines.onnxruntime.runner import FILES as MODEL_FILES
from tersor.engines.onnxruntime.runner import OnnxRuntimeRunner
from tersor.files import write_text

README = "README.txt"
FILES = (*MODEL_FILES, README)


class TensorRTRunner(OnnxRuntimeRunner):
    """The exported file, computed operator by operator in ONNX Runtime: its numbers, not its speed."""

    optimize = False

    def executed(self) -> list[Executed]:
        """An empty list: only TensorRT knows its fusions and their precisions (``--dumpLayerInfo``)."""
        return []

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the ONNX file, and instructions for building an engine from it."""
        files = super().save(folder)
        write_text(folder / README, _instructions(self.model))
        return (*files, README)


def _instructions(model: Any) -> str:
    shapes = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [d.dim_value or None for d in dims]
    ranges = ""
    if any(None in dims for dims in shapes.values()):
        for flag, batch in (("min", 1), ("opt", 8), ("max", 32)):
            text = ",".join(f"{n}:{'x'.join(str(d or batch) for d in dims)}" for n, dims in shapes.items())
            ranges += f" \\\n    --{flag}Shapes={text}"
    return f"""model.onnx holds explicit quantizers (QuantizeLinear and DequantizeLinear, int8, zero point 0);
opset 21 needs TensorRT 10 or later. Its types are decided by the file, so build a strongly typed engine:

  trtexec --onnx=model.onnx --stronglyTyped --saveEngine=model.plan{ranges}

Add --profilingVerbosity=detailed --dumpLayerInfo to see which precision every layer got.
"""
