"""The protocol of training quantizers: an entry of the table makes a module from a starting grid."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tersor.errors import NumericsError, RecipeError
from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.qtensor import quantize
from tersor.numerics.ranges import expand
from tersor.training.quantizers.rounding import RoundToGrid, Stored


@dataclass(frozen=True)
class Start:
    """Where training starts: the grid that calibration or a solver chose.

    Args:
        name: the readable name of the site, for errors.
        spec: format, granularity and symmetry; ``rounding: stochastic`` rounds stochastically while training.
        scale, zero_point: float32, as in a QTensor.
        weight: the float values of a weight; None for activations.
        error: the power of the error on this grid over that of the value, as calibration measured it, if it did.
    """

    name: str
    spec: QuantSpec
    scale: Tensor
    zero_point: Tensor
    weight: Tensor | None = None
    error: float | None = None


class Quantizer(nn.Module):
    """Quantizes a value while training: what it returns equals the deployed node, bit for bit.

    Its state (log-scales, offsets) is in ``state_dict``, with the shape of the scale. A schedule sets ``share`` and
    ``bits``, which act in training mode alone: in eval mode, and in ``grid`` and ``qtensor``, all is as deployed.

    Args:
        start: the starting grid.

    Attributes:
        commutes: whether quantizing commutes with multiplication by a positive number for each scale. If not, a weight
            is quantized after a BatchNorm was folded into it, also while the BatchNorm uses the statistics of the
            batch.
        share: of the quantized value in the result, from 0 to 1; the rest is the value itself.
        bits: of a finer grid over the same range, which divides each step into equal parts; None: the grid itself.
        error: that of the start, or None; constant, and in ``state_dict``, so that a resumed training knows it.
    """

    commutes: ClassVar[bool] = True
    share: float
    bits: int | None
    error: Tensor | None
    codes_range: Tensor

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.spec, self.name, self.is_weight = start.spec, start.name, start.weight is not None
        self.share, self.bits = 1.0, None
        self.register_buffer("error", None if start.error is None else torch.tensor(start.error))
        self.register_buffer("codes_range", torch.tensor([start.spec.low, start.spec.high], dtype=torch.float32))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        state, prefix, errors = args[0], args[1], args[-1]
        found = state.get(f"{prefix}codes_range")
        if found is not None and not torch.equal(found.cpu(), self.codes_range.cpu()):
            (low, high), (least, most) = found.tolist(), self.codes_range.tolist()
            errors.append(
                f"{prefix[:-1]}: the state has codes from {low:g} to {high:g}, this student from {least:g} to "
                f"{most:g}: make it by the same recipe"
            )
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def rounds(self) -> bool:
        """Whether the value itself is rounded to equal steps, so that there is a finer grid over the same range."""
        return self.spec.format.kind != "float"

    @property
    def parts(self) -> int:
        """What each step of the grid is divided into now: as many parts as ``bits`` can count."""
        if not (self.training and self.rounds and self.bits):
            return 1
        return max(1, (2**self.bits - 1) // (self.spec.high - self.spec.low))

    @abstractmethod
    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The differentiable scale and zero point, in the shape of the spec's granularity.

        Args:
            x: the value.
            factor: for weights, what each stored scale is multiplied by: |γ/σ| of a folded BatchNorm.
        """

    def stored_grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The grid with the scale in the spec's ``scale_dtype``, as float32."""
        scale, zero_point = self.grid(x, factor)
        if self.spec.scale_dtype != "float32":
            scale = Stored.apply(scale, getattr(torch, self.spec.scale_dtype))  # type: ignore[assignment]
        return scale, zero_point

    def latent(self, x: Tensor) -> Tensor:
        """The value that is rounded: ``x``, unless the technique transforms it."""
        return x

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``x`` quantized and dequantized, in its shape and dtype; while training as far as a schedule lets it.

        At a share of 0 it is computed too, so that every parameter has a gradient, which DDP asks for.
        """
        quantized = self.quantized(x, factor)
        return torch.lerp(x, quantized, self.share) if self.training and self.share < 1 else quantized

    def quantized(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``x`` quantized and dequantized."""
        x, parts = self.latent(x), self.parts
        scale, zero_point = (expand(t, x.shape, self.spec.block) for t in self.stored_grid(x, factor))
        if parts > 1:
            scale, zero_point = scale / parts, zero_point * parts
        low, high = self.spec.low * parts, self.spec.high * parts
        return RoundToGrid.apply(x, scale, zero_point, low, high, self.noise(x))  # type: ignore[return-value]

    def noise(self, x: Tensor) -> Tensor | None:
        """Uniform noise while training with stochastic rounding, else None."""
        random = self.training and self.spec.rounding == "stochastic"
        return torch.rand_like(x, dtype=torch.float32) if random else None

    @torch.no_grad()
    def qtensor(self, x: Tensor, factor: Tensor | None = None) -> QTensor:
        """A weight as codes, as it is deployed.

        Raises:
            NumericsError: naming the layer, if it contains NaN.
        """
        x = self.latent(x)
        scale, zero_point = (t.float().contiguous() for t in self.stored_grid(x, factor))
        try:
            return QTensor(self.codes(x, scale, zero_point), scale, zero_point, self.spec)
        except NumericsError as error:
            raise NumericsError(f"{self.name}: {error}") from error

    def codes(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """The codes of a latent value."""
        return quantize(x, scale, zero_point, self.spec.with_(rounding="nearest"))

    def extra_repr(self) -> str:
        """Shown by ``print(student)``."""
        return f"{self.name}: {self.spec}"


@runtime_checkable
class TrainingQuantizer(Protocol):
    """An entry of QUANTIZERS: a frozen dataclass whose fields are its options.

    ``kinds``: the kinds of formats it trains (``int``, ``levels`` ...); ``roles``: ``weight``, ``activation``.
    """

    kinds: ClassVar[frozenset[str]]
    roles: ClassVar[frozenset[str]]

    def __call__(self, start: Start) -> Quantizer:
        """A module that starts at the given grid."""
        ...


def check_start(name: str, entry: Any, start: Start) -> None:
    """Refuse a quantizer for a format or role that it does not train.

    Raises:
        RecipeError: naming the site and what it trains.
    """
    role = "activation" if start.weight is None else "weight"
    if role not in entry.roles:
        able = " and ".join(sorted(entry.roles))
        raise RecipeError(f"{start.name}: the quantizer {name} is for the {able}, not for the {role}; take lsq")
    if start.spec.format.name not in entry.kinds and start.spec.format.kind not in entry.kinds:
        raise RecipeError(
            f"{start.name}: the quantizer {name} trains the formats {', '.join(sorted(entry.kinds))}, not "
            f"{start.spec.format.name}; leave `quantizers` out, which takes one that fits"
        )
