"""Which engines skip zeros among weights, and under which conditions: CONDITIONS, by engine. Importing it is cheap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tersor.words import said


@dataclass(frozen=True)
class Weights:
    """The weights of a network that have zeros.

    Args:
        shapes: as [out, …]; one for each layer.
        bits: of each layer's weights.
        pattern: n:m, or empty.
        isa: the instruction sets of this CPU, as ``isa_flags`` names them.
    """

    shapes: Sequence[tuple[int, ...]]
    bits: Sequence[int]
    pattern: str
    isa: Sequence[str]


@dataclass(frozen=True)
class Condition:
    """When an engine skips zeros.

    Args:
        when: in words.
        lacking: what of it is not so for these weights here, in words; empty if nothing is lacking.
    """

    when: str
    lacking: Callable[[Weights], str]


def _openvino(weights: Weights) -> str:
    if "amx_int8" not in weights.isa:
        return said("this CPU has no AMX")
    layers = zip(weights.shapes, weights.bits, strict=True)
    if not any(bits == 8 and len(shape) == 2 and not any(n % 64 for n in shape) for shape, bits in layers):
        return said("no layer here has such a matrix")
    return said("the property is not set: layers with 80 % zeros were no faster with it")


def _tensorrt(weights: Weights) -> str:
    if weights.pattern != "2:4":
        return said("these zeros are not 2:4")
    return said("it was not timed on this machine")


def _xnnpack(weights: Weights) -> str:
    if not any(len(shape) == 4 and set(shape[2:]) == {1} for shape in weights.shapes):
        return said("no layer here is a 1x1 convolution")
    return said("it was not timed on this machine")


# OpenVINO: its FullyConnected takes the kernel ``brgemm_avx512_amx_sparse_i8`` then, and no convolution does.
# ONNX Runtime makes sparse initializers dense as it loads them. XNNPACK is what LiteRT and ExecuTorch compute with.
CONDITIONS: dict[str, Condition] = {
    "openvino": Condition(
        said(
            "OpenVINO skips zeros only in int8 matrices whose sizes are multiples of 64, on a CPU with AMX, with the "
            "property CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE below 1"
        ),
        _openvino,
    ),
    "onnxruntime": Condition(said("ONNX Runtime multiplies zeros like any other weight"), lambda weights: ""),
    "torch": Condition(said("PyTorch multiplies zeros like any other weight"), lambda weights: ""),
    "tensorrt": Condition(
        said("TensorRT skips only 2:4 zeros, on GPUs with sparse tensor cores, if its builder may"), _tensorrt
    ),
    "xnnpack": Condition(said("XNNPACK skips zeros only in 1x1 convolutions in float"), _xnnpack),
}


def condition(engine: str, weights: Weights) -> str:
    """When the engine skips zeros, and what of it is lacking here; empty for an engine that is not in CONDITIONS.

    >>> condition("onnxruntime", Weights([(64, 64)], [8], "", ["avx2"]))
    'ONNX Runtime multiplies zeros like any other weight'
    """
    if (found := CONDITIONS.get(engine)) is None:
        return ""
    return "; ".join(filter(None, (found.when, found.lacking(weights))))
