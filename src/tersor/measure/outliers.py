"""Outliers in the input of a layer: where they are, what they cost in int8, and the cheapest way around them."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from tersor.measure.fidelity import CEILING
from tersor.network.network import LINEARS, TRANSPOSED, Network, groups_of, op_name, title, weight_node
from tersor.numerics import QuantSpec, fake_quantize, qparams, quantize_tensor, reduce_range
from tersor.observers import Statistics

ENOUGH = 30.0  # dB: an error of 3 %; a Gaussian has about 40 in int8
LEAST = 20.0  # dB: an error of a tenth, below which 8 bits are given up
NEAR = 3.0  # dB, half a bit: what a dearer way must gain
OUTLYING = 8.0  # times the median: where this sets the step, an ordinary channel has lost 3 of its 8 bits
ROWS = 256  # kept of every input, for the estimates
_WEIGHTS = 2**22  # of a layer's weight that are looked at

Advice = Literal["fine", "smooth", "token", "float"]
ADVICE: dict[Advice, str] = {
    "fine": "nothing to do",
    "smooth": "smooth",
    "token": "quantize per token",
    "float": "keep in float or int16",
}


@dataclass(frozen=True, eq=False)
class LayerOutliers:
    """What the input of one weighted layer is like, and what would become of it in 8 bits.

    A row is what a scale of its own can be given to: the vector of channels of one token or position. The dB are
    those of the median row, so that neither a few rows nor a constant part, which carries nothing, hide the
    error of all others: the power of what varies in the layer's output over the power of its error, every
    channel weighted by the square of its weights.

    Attributes:
        name, op: of the layer.
        min, max: float32 ``[channels]``, exact over all that was seen.
        kurtosis: over all values, 3 for a Gaussian; None of a constant.
        row_ratio: max|x| of the largest row over that of the median row.
        tensor_db: int8 with one scale. int16_db: int16 with one scale.
        smoothed_db: int8 with one scale after SmoothQuant (α = 0.5), what its weight loses by that included; None
            where the layer cannot be smoothed.
        token_db: int8 with a scale for each row; None where the layer is not linear.
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
        """The magnitude of the median channel; channels that are always 0 do not count."""
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
        """The channels that reach 8 times the median one, the largest first."""
        order = self.magnitude.argsort(descending=True)
        return [int(k) for k in order[self.magnitude[order] >= OUTLYING * self.median] if self.median > 0]

    @property
    def advice(self) -> Advice:
        """The cheapest of nothing, smoothing and a scale for each token that keeps 30 dB or comes within 3 of the best.

        More than 8 bits where even the best keeps less than 20 dB.
        """
        ways: tuple[tuple[Advice, float | None], ...] = (
            ("fine", self.tensor_db),
            ("smooth", self.smoothed_db),
            ("token", self.token_db),
        )
        best = max(db for _, db in ways if db is not None)
        if best < LEAST:
            return "float"
        return next(way for way, db in ways if db is not None and db >= min(ENOUGH, best - NEAR))

    @property
    def reason(self) -> str:
        """The numbers behind the advice, in words."""
        parts = []
        if self.channel_ratio >= OUTLYING:
            parts.append(f"channel {self.worst} reaches {self.channel_ratio:.3g} times the median channel")
        if self.row_ratio >= OUTLYING:
            parts.append(f"the largest row {self.row_ratio:.3g} times the median row")
        kept = f"int8 keeps {self.tensor_db:.1f} dB"
        if self.advice != "fine":
            ways = (("smoothed", self.smoothed_db), ("per token", self.token_db), ("int16", self.int16_db))
            kept += "".join(f", {way} {db:.1f}" for way, db in ways if db is not None)
        return "; ".join([*parts, kept])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
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


def layer_outliers(network: Network, layer: fx.Node, seen: Statistics, smoothing: Tensor | None) -> LayerOutliers:
    """The record of one layer.

    Args:
        seen: of the layer's input, with channels and a sample of rows ``[channels]``.
        smoothing: what the input's channels would be divided by, float64 ``[channels]``; None if by nothing.
    """
    assert seen.channels is not None and seen.sample is not None
    rows, channels = seen.sample.stacked().double(), seen.channels
    weight = columns(network, layer)
    power = torch.ones(rows.shape[1]).double() if weight is None else weight.square().sum(0)
    signal = (rows - (channels.mean if channels.count > 1 else 0.0)).square() @ power
    alive = signal > 1e-10 * (rows.square() @ power)  # less is the rounding of the mean in float32

    def kept(noise: Tensor) -> float:
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
        lost = rows.square() @ (_rounding(weight, smoothing) - _rounding(weight, 1.0))
        smoothed = kept(noise(int8, *ends, smoothing) + lost.clamp(min=0.0))
    return LayerOutliers(
        name=title(layer),
        op=op_name(layer),
        min=channels.min,
        max=channels.max,
        kurtosis=seen.kurtosis,
        row_ratio=_ratio(float(channels.magnitude.max()), _median(rows.abs().amax(1))),
        tensor_db=kept(noise(int8, seen.min, seen.max)),
        smoothed_db=smoothed,
        token_db=kept(noise(token, *reduce_range(rows, token))) if layer.target in LINEARS else None,
        int16_db=kept(noise(int16, seen.min, seen.max)),
    )


def columns(network: Network, layer: fx.Node) -> Tensor | None:
    """A layer's weight by input channel, float64 ``[n, in]``; None where it is computed at run time.

    Of a large weight it is a part, the same of every channel.
    """
    node = weight_node(layer)
    if node is None:
        return None
    weight, groups = network.tensor(node).detach(), groups_of(layer)
    if layer.target in TRANSPOSED:
        weight = weight.flatten(1).T
    else:  # each group of filters reads inputs of its own
        weight = weight.unflatten(0, (groups, -1)).movedim(2, 1).flatten(2).flatten(0, 1).T
    return weight[:: -(-weight.numel() // _WEIGHTS)].double()


def _rounding(weight: Tensor, scale: Tensor | float) -> Tensor:
    """What int8 per filter loses of each column of ``weight · scale``, in the unit of the weight, squared."""
    scaled = weight * scale
    lost = (quantize_tensor(scaled, QuantSpec("int8", "channel")).dequantize() - scaled) / scale
    return lost.square().sum(0)


def _median(values: Tensor) -> float:
    alive = values[values > 0]
    return float(alive.median()) if len(alive) else 0.0


def _ratio(largest: float, median: float) -> float:
    return largest / median if median > 0 else 1.0
