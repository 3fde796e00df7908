"""The layouts in which quantized language models are exchanged: LAYOUTS, by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from tersor.checkpoints.awq import Awq
from tersor.checkpoints.compressed_tensors import CompressedTensors
from tersor.checkpoints.gptq import Gptq
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.spec import ScaleDtype


@runtime_checkable
class Layout(Protocol):
    """How a folder in the Hugging Face layout stores the quantized weights [out, in] of linear layers.

    A weight is named by its parameter, ``model.layers.0.mlp.up_proj.weight``; a layer (in ``unquantized``) by its
    module. ``config`` is the ``quantization_config`` of ``config.json``. Biases and float weights keep their own
    names.

    Attributes:
        fused_experts_alike: transformers opens it only if the experts that it fuses are all quantized to one spec.
    """

    fused_experts_alike: ClassVar[bool]

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        """Raise CheckpointError, naming the layer, the value and the remedy, if the layout cannot store it."""
        ...

    def scale_dtype(self, model_dtype: torch.dtype) -> ScaleDtype:
        """The ``scale_dtype`` to quantize with: the stored dtype of scales, for a model in ``model_dtype``."""
        ...

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors that replace ``name`` in a model of ``dtype``; raises CheckpointError as ``check`` does, and for
        scales that the file would have to round."""
        ...

    def config(self, specs: Mapping[str, QuantSpec], unquantized: Sequence[str]) -> dict[str, Any]:
        """The configuration for weights of ``specs``, with the linear layers ``unquantized`` in float; raises
        CheckpointError if it cannot express differing layers."""
        ...

    def decode(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> QTensor:
        """The weight ``name`` from its stored tensors; raises CheckpointError if one is missing, has a wrong shape, or
        uses an unsupported option."""
        ...

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        """The weights that are quantized, given the names of all tensors."""
        ...

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a ``quantization_config``, written by any tool, is of this layout."""
        ...

    def reader_limits(self, specs: Iterable[QuantSpec]) -> list[str]:
        """Limits of other tools for weights of ``specs`` in this layout, as sentences for the report."""
        ...


LAYOUTS: dict[str, Layout] = {
    "compressed-tensors": CompressedTensors(),
    "gptq": Gptq(),
    "gptq_v2": Gptq(version=2),
    "awq": Awq(),
}


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout of a ``quantization_config``; raises CheckpointError if it is not in LAYOUTS.

    >>> layout_of({"quant_method": "gptq", "checkpoint_format": "gptq_v2"})
    Gptq(version=2)
    """
    for layout in LAYOUTS.values():
        if layout.matches(config):
            return layout
    name = " ".join(str(config[key]) for key in ("quant_method", "checkpoint_format") if key in config)
    raise CheckpointError(f"quantization_config has the unsupported layout {name!r}; supported: {', '.join(LAYOUTS)}")
