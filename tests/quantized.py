"""Small quantized networks written by hand: every scale is chosen by the test, none by the planner."""

import torch
from torch import Tensor, nn

from tersor.network.capture import capture
from tersor.network.network import Network
from tersor.numerics.fakequant import fake_quantize
from tersor.numerics.qtensor import quantize_tensor
from tersor.numerics.spec import QuantSpec

INT8 = QuantSpec("int8", "channel")


class Q(nn.Module):
    """A quantizer with the scale and zero point given, uint8 unless told otherwise."""

    def __init__(self, scale: float, zero_point: float = 0.0, spec: QuantSpec | None = None) -> None:
        super().__init__()
        self.spec = spec or QuantSpec("uint8", symmetric=False)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("zero_point", torch.tensor(float(zero_point)))

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale, self.zero_point, self.spec)


class Weight(nn.Module):
    """A weight held as codes."""

    def __init__(self, weight: Tensor, spec: QuantSpec = INT8) -> None:
        super().__init__()
        held = quantize_tensor(weight, spec)
        self.block = spec.block
        for name in ("codes", "scale", "zero_point"):
            self.register_buffer(name, getattr(held, name))

    def forward(self) -> Tensor:
        return torch.ops.tersor.dequantize(self.codes, self.scale, self.zero_point, self.block)


class QConv(nn.Module):
    """A convolution with an integer weight."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, **options: int) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.weight, self.bias, self.options = Weight(conv.weight.detach()), conv.bias, options

    def forward(self, x: Tensor) -> Tensor:
        options = {"padding": self.weight.codes.shape[-1] // 2} | self.options
        return nn.functional.conv2d(x, self.weight(), self.bias, **options)


class QLinear(nn.Module):
    """A linear layer with an integer weight."""

    def __init__(self, inputs: int, outputs: int, spec: QuantSpec = INT8) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs)
        self.weight, self.bias = Weight(linear.weight.detach(), spec), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight(), self.bias)


class Residual(nn.Module):
    """Convolution, ReLU, convolution, sum, ReLU, mean, linear: what a ResNet is made of, in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.a, self.b, self.sum, self.mean = Q(0.03, 128), Q(0.01), Q(0.01, 120), Q(0.015), Q(0.01)
        self.first, self.second, self.head = QConv(3, 8), QConv(8, 8), QLinear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.first(self.x(x)).relu())
        x = self.sum((self.b(self.second(x)) + x).relu())
        return self.head(self.mean(x.mean((2, 3))))


class Then(nn.Module):
    """One module after another, with plain functions among them."""

    def __init__(self, *steps: object) -> None:
        super().__init__()
        self.steps = steps
        for k, step in enumerate(steps):
            if isinstance(step, nn.Module):
                self.add_module(f"step{k}", step)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)  # type: ignore[operator]
        return x


class Branches(nn.Module):
    """Modules that read the same value: one network, one export, many outputs."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x) for branch in self.branches)


def network(*steps: object, shape: tuple[int, ...] = (3, 8, 8)) -> Network:
    """The steps captured as a Network with a dynamic batch."""
    return capture(Then(*steps).eval(), (torch.zeros(2, *shape),))


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
