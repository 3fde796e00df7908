"""The ``quantization_config`` of a config.json, checked before a layout reads it."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr

from tersor.checkpoints.foreign.files import checked
from tersor.errors import CheckpointError

Bits = Annotated[StrictInt, Field(ge=1, le=16)]
Size = Annotated[StrictInt, Field(ge=-1, lt=1 << 31)]
Names = Annotated[list[StrictStr], Field(max_length=1_000_000)]


class _Weights(BaseModel):
    """How the weights of a group of compressed-tensors are stored."""

    num_bits: Bits
    type: StrictStr = "int"
    strategy: StrictStr | None = None
    group_size: Size | None = None
    symmetric: StrictBool = True


class _Group(BaseModel):
    """A group of compressed-tensors: targets are names, classes or, after ``re:``, patterns."""

    targets: Names
    weights: _Weights | None = None


class _Sparsity(BaseModel):
    """How compressed-tensors stores float weights with zeros; other entries are of no use to a reader."""

    format: StrictStr | None = None


class _Config(BaseModel):
    """The entries that are read: the groups of compressed-tensors, and those of GPTQ and AWQ."""

    quant_method: StrictStr = ""
    checkpoint_format: StrictStr | None = None
    tersor_transposed: Names = []
    config_groups: dict[str, _Group] = {}
    sparsity_config: _Sparsity | None = None
    bits: Bits | None = None
    group_size: Size | None = None
    sym: StrictBool | None = None
    version: StrictStr | StrictInt | float | None = None
    dynamic: dict[str, Any] | None = None


def checked_config(config: Any) -> dict[str, Any]:
    """The configuration itself.

    Raises:
        CheckpointError: a value does not have the type that its method accepts, or exceeds the bounds.

    >>> checked_config({"quant_method": "awq", "bits": "four"})
    Traceback (most recent call last):
    tersor.errors.CheckpointError: quantization_config: bits: Input should be a valid integer; download the folder again
    """
    checked(_Config, config, "quantization_config", CheckpointError, "download the folder again")
    return config
