"""How the weights or the activations of a layer are quantized, as a recipe says it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from tersor.errors import TersorError
from tersor.numerics.formats import FORMATS
from tersor.numerics.spec import Granularity, QuantSpec

# ``awq``: clipped where the layer's outputs suffer least, of language models.
WEIGHT_RANGES = ("minmax", "mse", "easyquant", "awq")
# ``runtime``: taken from the tensor itself whenever it is computed.
ACTIVATION_RANGES = ("minmax", "ema", "percentile", "kl", "mse", "admm", "easyquant", "runtime")


class Strict(BaseModel):
    """A value that is checked when it is made, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantization(Strict):
    """How the weights or the activations are quantized; ``auto`` leaves a field to the engine's policy.

    ``solver`` is for weights: ``rtn`` rounds each to nearest, ``gptq`` against calibrated inputs of its layer. Folders
    of language models also take ``obq``, ``adaround`` and ``hqq``.

    >>> Quantization(format="int8", granularity="channel").spec(QuantSpec("int8")).granularity.kind
    'channel'
    """

    format: str = "auto"
    granularity: str = "auto"
    symmetric: bool | None = None
    range: str = "minmax"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    solver: Literal["rtn", "gptq", "obq", "adaround", "hqq"] = "rtn"

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value != "auto" and value not in FORMATS:
            raise ValueError(f"unknown format {value!r}; one of auto, {', '.join(FORMATS)}")
        return value

    @field_validator("granularity")
    @classmethod
    def _known_granularity(cls, value: str) -> str:
        try:
            if value != "auto":
                Granularity.parse(value)
        except TersorError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("range")
    @classmethod
    def _known_range(cls, value: str) -> str:
        if value not in (*ACTIVATION_RANGES, *WEIGHT_RANGES):
            known = dict.fromkeys(ACTIVATION_RANGES + WEIGHT_RANGES)
            raise ValueError(f"unknown range {value!r}; one of {', '.join(known)}")
        return value

    @property
    def when(self) -> Literal["static", "runtime", "never"]:
        """When an activation's range is known: before, from calibration; at every call; or it stays float."""
        return "never" if self.format == "fp32" else "runtime" if self.range == "runtime" else "static"

    def spec(self, default: QuantSpec) -> QuantSpec:
        """The QuantSpec meant, where ``auto`` means ``default``."""
        # The policy's int8 may have fewer codes than int8 has: 7 bits on a CPU without VNNI.
        own = self.format not in ("auto", default.format.name)
        name = FORMATS[self.format] if own else default.format
        granularity = default.granularity if self.granularity == "auto" else Granularity.parse(self.granularity)
        symmetric = self.symmetric
        if symmetric is None:
            symmetric = default.symmetric if self.format == "auto" else name.signed
        return QuantSpec(name, granularity, symmetric, self.rounding, default.scale_dtype)
