"""Linear layers, embeddings and convolutions with quantized weights."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.network.quantized.weight import QuantizedWeight
from tersor.numerics import QuantSpec


class Quantized(nn.Module):
    """Base class of the quantized modules; ``weight`` reads as a float tensor."""

    qweight: QuantizedWeight
    activation: QuantSpec | None

    @property
    def weight(self) -> Tensor:
        """The weight as float32, dequantized on access."""
        return self.qweight.dequantize()

    def extra_repr(self) -> str:
        return "activations in float" if self.activation is None else f"activations {self.activation}"


class QuantizedLinear(Quantized):
    """``x @ weightᵀ + bias``, for ``nn.Linear`` and, ``transposed``, for GPT-2's Conv1D."""

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None, activation: QuantSpec | None, transposed: bool = False
    ) -> None:
        super().__init__()
        self.qweight, self.activation, self.transposed = weight, activation, transposed
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight as float32, in the layout of the replaced layer."""
        weight = self.qweight.dequantize()
        return weight.t() if self.transposed else weight

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` → ``[..., out_features]``, in the input's dtype."""
        x = input.reshape(-1, self.in_features).float()
        if x.numel() == 0:
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

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape → ``[..., embedding_dim]``, float32."""
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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the replaced layer."""
        tensors = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        return torch.func.functional_call(self._layer[0], tensors, args, kwargs)

    def extra_repr(self) -> str:
        return f"{self._layer[0]}, weights only"
