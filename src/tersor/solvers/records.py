"""What a report says of a solved layer: how, how well, and how well rounding to nearest would have done."""

from dataclasses import dataclass

from tersor.solvers.output_error import measured_error
from tersor.solvers.problem import LayerProblem, LayerSolution
from tersor.solvers.rtn import Rtn


@dataclass(frozen=True)
class LayerRecord:
    """One line of a report; None stands where nothing was measured, and no Gram matrix means no output error.

    Args:
        name: the layer's.
        method: what was really done, with its options.
        bits: that the codes, scales and zero points take in a file.
        sqnr_db: power of the weight over that of its error, in dB.
        output_error: power of the output's error over that of the output, on the calibration data.
        rtn_error: the same of rounding to nearest over the whole range, ``Rtn("minmax")``.
        tokens: rows of input behind the Gram matrix.
        damping: the share of the mean of diag H that was added to it.
    """

    name: str
    method: str
    bits: int
    sqnr_db: float
    output_error: float | None = None
    rtn_error: float | None = None
    tokens: int | None = None
    damping: float | None = None

    @property
    def share(self) -> float | None:
        """The output error as a share of rounding's: below 1 where the solver was worth its time."""
        return self.output_error / self.rtn_error if self.output_error is not None and self.rtn_error else None


def _nearest(problem: LayerProblem, solution: LayerSolution) -> float | None:
    if problem.gram is None or solution.rtn_error is not None:
        return solution.rtn_error
    return measured_error(problem, Rtn("minmax")(problem))


def record(problem: LayerProblem, solution: LayerSolution, tokens: int | None = None) -> LayerRecord:
    """The record of a layer that was solved; ``tokens`` is the ``rows`` of its ``Gram``.

    >>> import torch
    >>> from tersor.numerics import QuantSpec
    >>> gram = torch.tensor([[[2.0, 1.8], [1.8, 2.0]]])
    >>> problem = LayerProblem("fc", torch.tensor([[0.4, 0.4], [1.0, -1.0]]), QuantSpec("int2", "tensor"), gram=gram)
    >>> line = record(problem, Rtn("minmax")(problem), tokens=3)
    >>> line.method, line.bits, line.tokens, round(line.output_error, 3)
    ('rtn minmax', 40, 3, 0.752)
    """
    return LayerRecord(
        problem.name,
        solution.method,
        8 * solution.qtensor.nbytes,
        solution.sqnr_db,
        measured_error(problem, solution),
        _nearest(problem, solution),
        solution.tokens if tokens is None else tokens,
        solution.damping,
    )
