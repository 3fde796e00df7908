"""Linear layers, embeddings and convolutions with quantized weights."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.network.quantized.graph import is_tracing, making_graph
from tersor.network.quantized.readonly import refused
from tersor.network.quantized.weight import QuantizedWeight
from tersor.numerics import QuantSpec


class Quantized(nn.Module):
    """Base class of the quantized modules: weights read as float tensors, and cannot be written."""

    activation: QuantSpec | None

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("weight") and isinstance(value, Tensor):
            raise refused()
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        return "activations in float" if self.activation is None else f"activations {self.activation}"


class QuantizedLinear(Quantized, nn.Linear):
    """``x @ weightᵀ + bias``, for ``nn.Linear`` and, ``transposed``, for GPT-2's Conv1D.

    It is an ``nn.Linear`` without its parameters, so that PEFT and others that look for linear layers find it.
    """

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None, activation: QuantSpec | None, transposed: bool = False
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a float weight
        self.qweight, self.activation, self.transposed = weight, activation, transposed
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        if activation is not None:
            weight.pack()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The float weight in the layout of the replaced layer, computed when an operator reads it."""
        return self.qweight.read(self.transposed)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` → ``[..., out_features]``, in the input's dtype."""
        x = input.reshape(-1, self.in_features).float()
        if not making_graph() and x.numel() == 0:
            return input.new_zeros(*input.shape[:-1], self.out_features)
        bias = None if self.bias is None else self.bias.float()
        y = self.qweight.product(self.activation, bias)(x)
        return y.reshape(*input.shape[:-1], self.out_features).to(input.dtype)


class QuantizedEmbedding(Quantized):
    """An embedding that looks up quantized rows and dequantizes them."""

    def __init__(self, layer: nn.Embedding, weight: QuantizedWeight) -> None:
        super().__init__()
        self.qweight, self.activation = weight, None
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx = layer.padding_idx

    @property
    def weight(self) -> Tensor:
        """The float weight, computed when an operator reads it."""
        return self.qweight.read()

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape → ``[..., embedding_dim]``, in the dtype of the replaced layer."""
        return self._rows(input).to(self.qweight.dtype)

    def _rows(self, input: Tensor) -> Tensor:
        weight = self.qweight
        if weight.codes.shape != weight.shape or weight.spec.granularity.kind not in ("channel", "tensor"):
            return F.embedding(input, weight.dequantize())
        rows = F.embedding(input, weight.codes).float()
        if weight.scale.numel() == 1:
            zero = 0.0 if weight.zero_point is None else weight.zero_point
            return (rows - zero) * weight.scale
        if weight.zero_point is not None:
            rows -= F.embedding(input, weight.zero_point)
        return rows.mul_(F.embedding(input, weight.scale))


class WeightOnly(Quantized):
    """Any layer with one weight: runs the layer's own forward with the dequantized weight."""

    def __init__(self, layer: nn.Module, weight: QuantizedWeight) -> None:
        super().__init__()
        self.qweight, self.activation = weight, None
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)  # type: ignore[arg-type, operator]
        names = {id(p): nn.Parameter(torch.empty(0), requires_grad=False) for p in layer.parameters(recurse=False)}
        # In a tuple, so that it is not a submodule; its parameters are empty placeholders.
        self._layer: tuple[nn.Module] = (copy.deepcopy(layer, dict(names)),)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The float weight, computed when an operator reads it."""
        return self.qweight.read()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the replaced layer."""
        weight = self.qweight.dequantize().to(self.qweight.dtype)
        tensors = {"weight": weight} | ({} if self.bias is None else {"bias": self.bias})
        if not is_tracing():
            return torch.func.functional_call(self._layer[0], tensors, args, kwargs)
        # functional_call refuses traces.
        layer = copy.copy(self._layer[0])
        layer._parameters = {"bias": None, **tensors}  # type: ignore[assignment]
        return layer.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes that parents read besides the weight: ``stride``, ``kernel_size``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self._layer[0], name)

    def extra_repr(self) -> str:
        return f"{self._layer[0]}, weights only"
