"""Everything is quantized from the first step."""

from dataclasses import dataclass

from torch import nn

from tersor.training.student import quantizers_in


@dataclass(frozen=True)
class All:
    """All quantizers are active, with their own number of bits, from the first step to the last."""

    @property
    def end(self) -> float:
        """From the start."""
        return 0.0

    def __call__(self, student: nn.Module, progress: float) -> None:
        """The same at every step."""
        for quantizer in quantizers_in(student):
            quantizer.share, quantizer.bits = 1.0, None
