"""The number of bits falls in stages."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import nn

from tersor.errors import RecipeError
from tersor.training.student import quantizers_in

FLOAT = 32


@dataclass(frozen=True)
class Progressive:
    """Stages with more bits come before the deployed one (Zhuang et al., arXiv 1711.00205).

    The learned scale is always that of the deployed grid. A stage with more bits divides each step of it into equal
    parts, as many as it can count, so the range stays, zero stays a value, and the next stage starts with what this one
    learned. A quantizer without a finer grid (``sign``, ``irnet``, ``twn``, ``ttq``, ``dorefa``, float formats) passes
    its input as long as the stage has more bits than its format. A format with as many bits as the stage, or more, is
    deployed from that stage on.

    Args:
        bits: of the stages before the deployed one, falling: 2 to 16, or 32 for float.
        shares: the share of all steps of each of these stages; None: equal parts of the first half.

    >>> schedule = Progressive(bits=(32, 8, 4))
    >>> [schedule.stage(progress) for progress in (0, 0.2, 0.4, 0.5, 1)]
    [32, 8, 4, None, None]
    """

    bits: tuple[Annotated[int, Ge(2), Le(32)], ...] = (8, 4)
    shares: tuple[Annotated[float, Gt(0)], ...] | None = None

    def __post_init__(self) -> None:
        if wrong := [bits for bits in self.bits if not (2 <= bits <= 16 or bits == FLOAT)]:
            raise RecipeError(f"a stage has 2 to 16 bits, or {FLOAT} for float, not {wrong[0]}")
        if any(before <= after for before, after in pairwise(self.bits)):
            raise RecipeError(f"the bits {list(self.bits)} do not fall from stage to stage: sort them")
        if self.shares is not None and len(self.shares) != len(self.bits):
            raise RecipeError(f"{len(self.bits)} stages have {len(self.shares)} shares: give one for each of `bits`")
        if sum(self.shares or ()) >= 1:
            raise RecipeError(
                f"the shares {list(self.shares or ())} leave nothing for the last stage, which trains what is "
                "deployed: their sum must be less than 1"
            )

    def __call__(self, student: nn.Module, progress: float) -> None:
        bits = self.stage(progress)
        for quantizer in quantizers_in(student):
            wider = bits is not None and bits > quantizer.spec.format.bits
            finer = wider and bits != FLOAT and quantizer.rounds
            quantizer.share, quantizer.bits = (1.0 if finer or not wider else 0.0), bits if finer else None

    @property
    def end(self) -> float:
        """The share of the stages before the deployed one."""
        return sum(self._shares)

    @property
    def _shares(self) -> tuple[float, ...]:
        return self.shares or (0.5 / max(1, len(self.bits)),) * len(self.bits)

    def stage(self, progress: float) -> int | None:
        """The bits now; None: as deployed."""
        stages = zip(self.bits, accumulate(self._shares), strict=True)
        return next((bits for bits, end in stages if progress < end and progress < 1), None)
