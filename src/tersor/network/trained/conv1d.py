"""GPT-2's Conv1D, a linear layer whose weight is ``[in, out]``; imported where transformers has been."""

import torch.nn.functional as F
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from tersor.network.trained.activations import at_run_time
from tersor.numerics import QuantSpec


class TrainedConv1D(Conv1D):
    """``Conv1D`` with a quantizer of its weight as ``[out, in]``, and of its input if ``activation`` is given."""

    activation: QuantSpec | None

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` → ``[..., out]``."""
        weight: Tensor = self.weight_quantizer(self.weight.t())  # type: ignore[operator]
        return F.linear(at_run_time(x, self.activation), weight, self.bias)
