"""One weight to be quantized, and the result: the types that all solvers share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.errors import CalibrationError
from tersor.numerics import QTensor, QuantSpec


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input; a linear layer has the default one.

    Args:
        stride, padding, dilation: one number for each spatial dimension; none for a linear layer. The
            padding may also be ``"same"`` or ``"valid"``.
        groups: how many independent groups the channels form.
    """

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | Literal["same", "valid"] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True)
class LayerProblem:
    """One weight and everything that a solver may read about its layer.

    Args:
        name: the layer's dotted name, for errors and reports.
        weight: float [out, in/groups, *kernel] of a convolution, [out, in] of a linear layer.
        spec: how the weight is to be quantized.
        geometry: of a convolution.
        sample: inputs of the layer, [pictures, in, *spatial] or [..., in]; only solvers that name
            ``"sample"`` in ``needs`` read it.
        input_spec: how the layer's input is quantized; None if it stays float.
        input_range: (low, high) of that input, from which a solver may search for a better one.
        gram: 2·mean(x·xᵀ) of the layer's inputs (of a convolution's patches), one matrix a group.
        cross: 2·mean((y − W·x)·xᵀ), where y is the original layer's output (without its bias) and x its present
            input, after earlier layers were quantized; columns as in the Gram matrices. None: y = W·x.
        tokens: rows of input behind ``gram``.
    """

    name: str
    weight: Float[Tensor, "..."]
    spec: QuantSpec
    geometry: Geometry = field(default_factory=Geometry)
    sample: Tensor | None = None
    input_spec: QuantSpec | None = None
    input_range: tuple[float, float] | None = None
    gram: Float[Tensor, "groups columns columns"] | None = None
    cross: Float[Tensor, "out columns"] | None = None
    tokens: int | None = None

    def require(self, needs: Sequence[str]) -> None:
        """Raise CalibrationError unless every field of ``needs`` was given."""
        for name in needs:
            if getattr(self, name) is None:
                raise CalibrationError(
                    f"layer {self.name}: this solver needs {name}, which was not collected; calibrate with "
                    "the statistics that the solver names in `needs`, or use the solver rtn"
                )


@dataclass(frozen=True)
class LayerSolution:
    """A quantized weight and its errors.

    Args:
        qtensor: codes, scale and zero point.
        method: the solver with its options, as the report prints it.
        sqnr_db: power of the weight over the power of its error, in dB; infinite without error.
        cosine: of the layer's output before and after on the sample (a mean over channels), or None.
        input_range: the range that the solver chose for the layer's input, or None.
        output_error: power of the output's error over that of the output, by the Gram matrix, or None without one.
        rtn_error: the same of the weight rounded to nearest between its extremes, or None if not measured.
        damping: the share of the mean of diag H that was added to it, by solvers that factor or invert it.
        tokens: rows of input behind the Gram matrix, or None if unknown.
    """

    qtensor: QTensor
    method: str
    sqnr_db: float
    cosine: float | None = None
    input_range: tuple[float, float] | None = None
    output_error: float | None = None
    rtn_error: float | None = None
    damping: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class LayerRecord:
    """One row of a report; anything not measured is None, and without a Gram matrix there is no output error.

    Args:
        name: the layer's.
        method: the solver that was used, with its options.
        bits: size of the codes, scales and zero points in a file.
        sqnr_db: power of the weight over that of its error, in dB.
        output_error: power of the output's error over that of the output, on the calibration data.
        rtn_error: the same of rounding to nearest over the whole range, ``Rtn("minmax")``.
        tokens: rows of input behind the Gram matrix.
        damping: the share of the mean of diag H that was added to it.
    """

    name: str
    method: str
    bits: int
    sqnr_db: float
    output_error: float | None = None
    rtn_error: float | None = None
    tokens: int | None = None
    damping: float | None = None

    @property
    def share(self) -> float | None:
        """The output error relative to that of rounding: below 1 if the solver paid off."""
        return self.output_error / self.rtn_error if self.output_error is not None and self.rtn_error else None


@runtime_checkable
class Solver(Protocol):
    """A frozen dataclass of options that turns a LayerProblem into a LayerSolution.

    An entry may also declare, as class attributes: ``wants`` (optional fields of LayerProblem that it uses),
    ``by_row`` (codes of an output with its own scale depend only on its weights), ``is_range`` (its name may be
    a recipe's ``range``), and ``input_observer`` (it chooses the input's range too, from that observer's). An option
    ``seed`` gets the recipe's seed, and ``range`` or ``start`` the recipe's range.
    """

    needs: ClassVar[tuple[str, ...]]  # the fields of LayerProblem that must be given

    def __call__(self, problem: LayerProblem) -> LayerSolution: ...

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]: ...


def decibels(signal: float, noise: float) -> float:
    """10·log10(signal/noise): infinite without noise, minus infinite for noise only.

    >>> decibels(100.0, 1.0), decibels(0.0, 0.0)
    (20.0, inf)
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def weight_sqnr(weight: Tensor, qtensor: QTensor) -> float:
    """The signal-to-quantization-noise ratio of a weight, in dB."""
    # Sums of squares in float32 are exact to 1e-6 here (PyTorch adds pairwise); float64 would double the time.
    alone = qtensor.scale.ndim > 1 and len(qtensor.scale) == len(weight)
    step = max(1, 2**20 // max(1, weight[:1].numel())) if alone else max(1, len(weight))  # fits in the cache
    signal = noise = 0.0
    for k in range(0, len(weight), step):
        w = weight[k : k + step].float()
        signal += float(torch.linalg.vector_norm(w)) ** 2
        noise += float(torch.linalg.vector_norm(qtensor.rows(slice(k, k + step)).dequantize() - w)) ** 2
    return decibels(signal, noise)
