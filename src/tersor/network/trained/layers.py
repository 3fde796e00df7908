"""Linear layers, embeddings and convolutions that train with their quantization.

Each is the layer's own class, whose parameters keep their names, with a quantizer beside each weight. In eval mode a
layer with weights alone quantized gives what its deployed form gives (bf16, which is deployed as products in bf16,
within 2⁻⁷ of their magnitudes). One whose input is quantized too differs by the rounding of float sums, since the codes
are the same and integer sums are exact: with n inputs, whose row spans r with zero, by at most
``(n + 4) · 2⁻²³ · (r · Σ|w| + |b|)``, in float32.
"""

from typing import Any

from torch import Tensor, nn

from tersor.network.trained.activations import at_run_time
from tersor.network.trained.reading import Quantizing
from tersor.numerics import QuantSpec


class TrainedLinear(nn.Linear):
    """``nn.Linear`` with a quantizer of its weight, and of its input if ``activation`` is given."""

    activation: QuantSpec | None

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` → ``[..., out_features]``."""
        return nn.Linear.forward(_quantizing(self), at_run_time(input, self.activation))


class TrainedEmbedding(nn.Embedding):
    """``nn.Embedding`` with a quantizer of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape → ``[..., embedding_dim]``."""
        return nn.Embedding.forward(_quantizing(self), input)


class TrainedConv1d(nn.Conv1d):
    """``nn.Conv1d`` with a quantizer of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv1d``."""
        return nn.Conv1d.forward(_quantizing(self), input)


class TrainedConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a quantizer of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv2d``."""
        return nn.Conv2d.forward(_quantizing(self), input)


class TrainedConv3d(nn.Conv3d):
    """``nn.Conv3d`` with a quantizer of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv3d``."""
        return nn.Conv3d.forward(_quantizing(self), input)


class TrainedConvTranspose1d(nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with a quantizer of its weight."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """As ``nn.ConvTranspose1d``."""
        return nn.ConvTranspose1d.forward(_quantizing(self), input, output_size)


class TrainedConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with a quantizer of its weight."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """As ``nn.ConvTranspose2d``."""
        return nn.ConvTranspose2d.forward(_quantizing(self), input, output_size)


class TrainedConvTranspose3d(nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with a quantizer of its weight."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """As ``nn.ConvTranspose3d``."""
        return nn.ConvTranspose3d.forward(_quantizing(self), input, output_size)


def _quantizing(layer: nn.Module) -> Any:
    # Not the layer's type, but all that its forward reads.
    return Quantizing(layer)
