"""A small network whose values and weights are quantized, without a captured graph."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.numerics import QuantSpec, quantize_tensor
from tersor.training.quantizers import Quantizer, Start, quantizer
from tersor.training.student import LatentWeight

UINT2, INT2 = QuantSpec("uint2", symmetric=False), QuantSpec("int2", "channel")
NAMES = ("stem", "blocks.0.up", "blocks.0.down", "head")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module_of(name: str, spec: QuantSpec, value: Tensor, weight: bool, asked="auto") -> Quantizer:
    """A quantizer whose grid covers the values, and whose error on them is known."""
    q = quantize_tensor(value, spec)
    error = float((q.dequantize() - value).square().sum() / value.square().sum())
    start = Start(name, spec, q.scale, q.zero_point, value if weight else None)
    return quantizer(asked, replace(start, error=error))


class Toy(nn.Module):
    """Four linear layers with ReLU; the inputs and the weights of all are quantized."""

    def __init__(self, activations=UINT2, weights=INT2, asked=("auto", "auto"), width: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in NAMES)
        self.quantizers = nn.ModuleDict()
        with torch.no_grad():
            for k, (name, layer) in enumerate(zip(NAMES, self.layers, strict=True)):
                layer.weight.copy_(drawn(width, width, seed=k) / width**0.5)
                layer.bias.copy_(drawn(width, seed=10 + k) / width)
                values = drawn(64, width, seed=20 + k).relu() * (k + 1)
                key = name.replace(".", "_")
                self.quantizers[f"{key}_in"] = module_of(f"{name}.relu", activations, values, False, asked[0])
                self.quantizers[f"{key}_weight"] = module_of(name, weights, layer.weight.detach(), True, asked[1])

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in zip(NAMES, self.layers, strict=True):
            key = name.replace(".", "_")
            weight = self.quantizers[f"{key}_weight"](layer.weight)
            x = F.linear(self.quantizers[f"{key}_in"](x.relu()), weight, layer.bias)
        return x

    def latent_weights(self) -> Iterator[LatentWeight]:
        for k, (name, layer) in enumerate(zip(NAMES, self.layers, strict=True)):
            yield LatentWeight(f"layers.{k}.weight", self.quantizers[f"{name.replace('.', '_')}_weight"], layer.weight)
