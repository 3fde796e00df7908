"""The TensorRT profile: explicit QDQ ONNX as TensorRT's documentation asks for it. TensorRT is not run.

The file is checked by ``onnx.checker``, and ONNX Runtime computes it operator by operator, so that it can be
held against the simulation; latency and the precision of kernels can only be told on the target machine.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tersor.engines.base import Executed
from tersor.engines.onnxruntime import FILES as MODEL_FILES
from tersor.engines.onnxruntime import OnnxRuntimeRunner, version
from tersor.errors import EngineError
from tersor.network.network import Network
from tersor.numerics.spec import Granularity, QuantSpec
from tersor.policy import Policy, x86

NAME = "tensorrt"
README = "README.txt"
FILES = (*MODEL_FILES, README)

__all__ = ["FILES", "NAME", "TensorRTRunner", "compile", "load", "policy", "version"]


def policy() -> Policy:
    """int8 symmetric with zero point 0 everywhere, weights per channel.

    What a layer reads is quantized, not what it writes, and of a residual sum only the shortcut, so that
    convolution, sum and ReLU become one kernel.
    """
    return replace(
        x86(NAME),
        activation=QuantSpec("int8", Granularity.tensor(), symmetric=True),
        weight=QuantSpec("int8", Granularity.channel(0), symmetric=True),
        activation_formats=frozenset({"int8", "fp8_e4m3"}),
        weight_formats=frozenset({"int8", "fp8_e4m3"}),
        arithmetic=frozenset({"add"}),
        skip_branch_only="always",
    )


def compile(network: Network, *, threads: int | None = None, precision: str = "f32") -> "TensorRTRunner":
    """The network as explicit QDQ ONNX, checked, and ready to be computed for comparison.

    Raises:
        EngineError: where the ONNX packages are not installed, ONNX cannot express the network, or a
            quantizer is not symmetric.
    """
    _require()
    import onnx

    from tersor.checkpoints.onnx.qdq import Style, to_onnx

    style = Style(merge_activations=False, on_codes=False, narrow_codes=False, integer_biases=False)
    model = to_onnx(network, style)
    _check_symmetric(model)
    onnx.checker.check_model(model, full_check=True)
    return TensorRTRunner(model, threads)


def load(folder: Path, *, threads: int | None = None, precision: str = "f32") -> "TensorRTRunner":
    """A runner of what ``TensorRTRunner.save`` wrote."""
    _require()
    import onnx

    try:
        return TensorRTRunner(onnx.load(str(folder / FILES[0])), threads)
    except Exception as error:
        raise EngineError(f"the ONNX file {folder / FILES[0]} cannot be read: {error}") from error


def _require() -> None:
    if version() is None:
        raise EngineError(
            'the profile `tensorrt` writes ONNX, which is not installed; run: pip install "tersor[onnx]"'
        )


def _check_symmetric(model: Any) -> None:
    from onnx import numpy_helper

    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and numpy_helper.to_array(tensors[node.input[2]]).any():
            raise EngineError(
                f"{node.name.split('/')[0]}: TensorRT takes only zero point 0; compress with activations "
                "that are int8 and symmetric, as the preset int8-tensorrt does"
            )


class TensorRTRunner(OnnxRuntimeRunner):
    """The exported file, computed operator by operator in ONNX Runtime: its numbers, not its speed."""

    optimize = False

    def executed(self) -> list[Executed]:
        """Nothing: what is fused, and into which precision, only TensorRT can tell (``--dumpLayerInfo``)."""
        return []

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the ONNX file, and beside it how to build an engine from it."""
        files = super().save(folder)
        (folder / README).write_text(_instructions(self.model), encoding="utf8")
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
