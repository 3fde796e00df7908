"""Outliers in a layer's input: where they are, what they cost in int8, and the cheapest remedy."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from tersor.measure.fidelity import CEILING
from tersor.network.network import LINEARS, TRANSPOSED, Network, groups_of, op_name, title, weight_node
from tersor.numerics import QuantSpec, fake_quantize, qparams, quantize_tensor, reduce_range
from tersor.observers import Statistics
from tersor.words import said

ENOUGH = 30.0  # dB: an error of 3 %; a Gaussian has about 40 dB in int8
LEAST = 20.0  # dB: an error of 10 %, below which 8 bits are not advised
MIN_GAIN = 3.0  # dB, half a bit: the minimum gain of a more expensive remedy
OUTLYING = 8.0  # times the median: a scale for such a channel costs a median channel 3 of its 8 bits
ROWS = 256  # sampled per input, for the estimates
_WEIGHTS = 2**22  # sampled per layer

Advice = Literal["fine", "smooth", "token", "float"]
ADVICE: dict[Advice, str] = {
    "fine": said("no outliers"),
    "smooth": said("smooth"),
    "token": said("quantize per token"),
    "float": said("keep in float or int16"),
}


@dataclass(frozen=True, eq=False)
class LayerOutliers:
    """Statistics of the input of one layer with a weight, and estimates of its error in 8 bits.

    A row is the vector of channels of one token or position, which can have its own scale. The dB are those of the
    median row, so that neither a few rows nor a constant component hide the error of the others: the variance of the
    layer's output over the power of its error, with each channel weighted by the square of its weights.

    Attributes:
        name: the layer's name.
        op: the layer's operator.
        min: float32 ``[channels]``, exact over all inputs.
        max: float32 ``[channels]``, exact over all inputs.
        kurtosis: over all values; 3 for a Gaussian, None for a constant.
        row_ratio: max|x| of the largest row over that of the median row.
        tensor_db: int8 with one scale.
        smoothed_db: int8 with one scale after SmoothQuant (α = 0.5), with the added error of the weight; None if the
            layer cannot be smoothed.
        token_db: int8 with a scale per row; None if the layer is not linear.
        int16_db: int16 with one scale.
    """

    name: str
    op: str
    min: Tensor
    max: Tensor
    kurtosis: float | None
    row_ratio: float
    tensor_db: float
    smoothed_db: float | None
    token_db: float | None
    int16_db: float

    @property
    def magnitude(self) -> Tensor:
        """The largest |x|, float32 ``[channels]``."""
        return torch.maximum(self.max.abs(), self.min.abs())

    @property
    def median(self) -> float:
        """The magnitude of the median channel, ignoring channels that are always 0."""
        return _median(self.magnitude)

    @property
    def worst(self) -> int:
        """The channel with the largest magnitude."""
        return int(self.magnitude.argmax())

    @property
    def channel_ratio(self) -> float:
        """The largest channel's magnitude over the median one's."""
        return _ratio(float(self.magnitude.max()), self.median)

    @property
    def outlying(self) -> list[int]:
        """The channels with at least 8 times the median magnitude, largest first."""
        order = self.magnitude.argsort(descending=True)
        return [int(k) for k in order[self.magnitude[order] >= OUTLYING * self.median] if self.median > 0]

    @property
    def advice(self) -> Advice:
        """The cheapest of no change, smoothing and a scale per token that reaches 30 dB or is within 3 dB of the best.

        More than 8 bits if the best has less than 20 dB.
        """
        ways: tuple[tuple[Advice, float | None], ...] = (
            ("fine", self.tensor_db),
            ("smooth", self.smoothed_db),
            ("token", self.token_db),
        )
        best = max(db for _, db in ways if db is not None)
        if best < LEAST:
            return "float"
        return next(way for way, db in ways if db is not None and db >= min(ENOUGH, best - MIN_GAIN))

    @property
    def reason(self) -> str:
        """The figures that the advice is based on, as text."""
        parts = []
        if self.channel_ratio >= OUTLYING:
            ratio = f"{self.channel_ratio:.3g}"
            parts.append(said("channel {channel} reaches {ratio} times the median channel",
                              channel=self.worst, ratio=ratio))  # fmt: skip
        if self.row_ratio >= OUTLYING:
            parts.append(said("the largest row reaches {ratio} times the median row", ratio=f"{self.row_ratio:.3g}"))
        parts.append(said("int8 has {db} dB", db=f"{self.tensor_db:.1f}"))
        if self.advice != "fine":
            if self.smoothed_db is not None:
                parts.append(said("smoothed {db} dB", db=f"{self.smoothed_db:.1f}"))
            if self.token_db is not None:
                parts.append(said("per token {db} dB", db=f"{self.token_db:.1f}"))
            parts.append(f"int16 {self.int16_db:.1f} dB")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "name": self.name,
            "op": self.op,
            "advice": self.advice,
            "reason": self.reason,
            "channel_ratio": self.channel_ratio,
            "row_ratio": self.row_ratio,
            "kurtosis": self.kurtosis,
            "outlying": self.outlying,
            "tensor_db": self.tensor_db,
            "smoothed_db": self.smoothed_db,
            "token_db": self.token_db,
            "int16_db": self.int16_db,
            "min": self.min.tolist(),
            "max": self.max.tolist(),
        }

    def __str__(self) -> str:
        return f"{self.name} ({self.op}): {ADVICE[self.advice]}: {self.reason}"


def layer_outliers(network: Network, layer: fx.Node, statistics: Statistics, smoothing: Tensor | None) -> LayerOutliers:
    """Analyse one layer.

    Args:
        statistics: of the layer's input, with channels and a sample of rows ``[channels]``.
        smoothing: the divisors that smoothing would apply to the input's channels, float64 ``[channels]``, or None.
    """
    assert statistics.channels is not None and statistics.sample is not None
    rows, channels = statistics.sample.stacked().double(), statistics.channels
    weight = columns(network, layer)
    power = torch.ones(rows.shape[1]).double() if weight is None else weight.square().sum(0)
    signal = (rows - (channels.mean if channels.count > 1 else 0.0)).square() @ power
    alive = signal > 1e-10 * (rows.square() @ power)  # anything less is the float32 rounding of the mean

    def median_db(noise: Tensor) -> float:
        ratio = signal[alive] / noise[alive].clamp(min=1e-300)
        return min(CEILING, float(10 * ratio.log10().median())) if alive.any() else CEILING

    def noise(spec: QuantSpec, low: Any, high: Any, scale: Tensor | float = 1.0) -> Tensor:
        x = rows / scale
        error = fake_quantize(x, *qparams(low, high, spec), spec) - x
        return (error * scale).square() @ power

    int8, int16 = QuantSpec("int8", symmetric=False), QuantSpec("int16")
    token = int8.with_(granularity="token")
    smoothed = None
    if smoothing is not None and weight is not None:
        ends = (float((channels.min / smoothing).min()), float((channels.max / smoothing).max()))
        added = rows.square() @ (_rounding(weight, smoothing) - _rounding(weight, 1.0))
        smoothed = median_db(noise(int8, *ends, smoothing) + added.clamp(min=0.0))
    return LayerOutliers(
        name=title(layer),
        op=op_name(layer),
        min=channels.min,
        max=channels.max,
        kurtosis=statistics.kurtosis,
        row_ratio=_ratio(float(channels.magnitude.max()), _median(rows.abs().amax(1))),
        tensor_db=median_db(noise(int8, statistics.min, statistics.max)),
        smoothed_db=smoothed,
        token_db=median_db(noise(token, *reduce_range(rows, token))) if layer.target in LINEARS else None,
        int16_db=median_db(noise(int16, statistics.min, statistics.max)),
    )


def columns(network: Network, layer: fx.Node) -> Tensor | None:
    """A layer's weight by input channel, float64 ``[n, in]``, or None if it is computed at run time.

    A large weight is subsampled, in the same way for every channel.
    """
    node = weight_node(layer)
    if node is None:
        return None
    weight, groups = network.tensor(node).detach(), groups_of(layer)
    if layer.target in TRANSPOSED:
        weight = weight.flatten(1).T
    else:  # each group of filters reads its own inputs
        weight = weight.unflatten(0, (groups, -1)).movedim(2, 1).flatten(2).flatten(0, 1).T
    return weight[:: -(-weight.numel() // _WEIGHTS)].double()


def _rounding(weight: Tensor, scale: Tensor | float) -> Tensor:
    """The squared int8 per-filter error of each column of ``weight · scale``, in the units of the weight."""
    scaled = weight * scale
    added = (quantize_tensor(scaled, QuantSpec("int8", "channel")).dequantize() - scaled) / scale
    return added.square().sum(0)


def _median(values: Tensor) -> float:
    alive = values[values > 0]
    return float(alive.median()) if len(alive) else 0.0


def _ratio(largest: float, median: float) -> float:
    return largest / median if median > 0 else 1.0
