"""The layouts in which quantized language models are exchanged, by name: tensors and a configuration, in and out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tersor.checkpoints.awq import Awq
from tersor.checkpoints.compressed_tensors import CompressedTensors
from tersor.checkpoints.gptq import Gptq
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.spec import ScaleDtype


class Layout(Protocol):
    """How the quantized weights [out, in] of linear layers stand in a folder of the Hugging Face layout.

    A weight is called by the name of its parameter, ``model.layers.0.mlp.up_proj.weight``; a layer (in ``left``)
    by that of its module. ``config`` is the ``quantization_config`` of ``config.json``. Biases, and what stays in
    float, are stored under their own names and are none of its business.
    """

    def check(self, name: str, shape: Sequence[int], spec: QuantSpec) -> None:
        """Raise CheckpointError, which names the layer, the value and the remedy, if it cannot be held so."""
        ...

    def scale_dtype(self, model_dtype: torch.dtype) -> ScaleDtype:
        """What scales are stored in, for a model in ``model_dtype``: the ``scale_dtype`` to quantize with."""
        ...

    def encode(self, name: str, qtensor: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors that stand in place of ``name`` in a model of ``dtype``; raises CheckpointError as ``check``
        does, and for scales that the file would round."""
        ...

    def config(self, specs: Mapping[str, QuantSpec], left: Sequence[str]) -> dict[str, Any]:
        """The configuration for weights of ``specs``, where the linear layers ``left`` stay in float; raises
        CheckpointError where it cannot say that layers differ."""
        ...

    def decode(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> QTensor:
        """The weight ``name`` from the tensors that stand for it; raises CheckpointError if one is missing, has
        another shape, or says what is not read here."""
        ...

    def stored(self, names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
        """The weights that are held quantized where the tensors ``names`` are."""
        ...


LAYOUTS: dict[str, Layout] = {
    "compressed-tensors": CompressedTensors(),
    "gptq": Gptq(),
    "gptq_v2": Gptq(version=2),
    "awq": Awq(),
}


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout that a ``quantization_config`` speaks of; raises CheckpointError if it is none of LAYOUTS.

    >>> layout_of({"quant_method": "gptq", "checkpoint_format": "gptq_v2"})
    Gptq(version=2)
    """
    method = config.get("quant_method")
    # Files from before there were two versions do not name theirs.
    name = config.get("checkpoint_format", "gptq") if method == "gptq" else method
    if name not in LAYOUTS:
        raise CheckpointError(f"the quantization_config is of {name!r}; what is read here: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
