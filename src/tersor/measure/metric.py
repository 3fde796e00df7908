"""Run the user's evaluation with checks, compute the paired interval of a difference, and see what it depends on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.errors import TaskError
from tersor.metrics import known_metric
from tersor.user_code import users
from tersor.words import said

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
DRAWS = 2000  # bootstrap resamples
CHUNK = 4_000_000  # indices drawn at a time, which bounds the bootstrap's memory


@dataclass(frozen=True)
class MetricResult:
    """The result of `evaluate`: the value, and the score of each sample (float64, 1-D) or None."""

    value: float
    scores: Tensor | None = None

    @property
    def samples(self) -> int | None:
        """The number of scored samples, or None if evaluate returned one number."""
        return None if self.scores is None else self.scores.numel()


def evaluate_metric(evaluate: Callable[[Callable], object], predict: Callable, what: str = "the model") -> MetricResult:
    """Call `evaluate(predict)`; the value is the mean of the scores.

    Raises TaskError if evaluate raises, or returns NaN, infinity, nothing or a non-number.

    >>> evaluate_metric(lambda predict: [1, 0, 1, 1], predict=print).value
    0.75
    >>> evaluate_metric(lambda predict: float("nan"), predict=print, what="FP32")
    Traceback (most recent call last):
    tersor.errors.TaskError: evaluate of FP32 returned nan: return a finite number (is the data empty?)
    """
    with users(f"evaluate of {what}", TaskError, "run evaluate(predict) on its own to debug it", False):
        result = evaluate(predict)
    return metric_result(result, what)


def metric_result(result: object, what: str = "the model") -> MetricResult:
    """Check what `evaluate` returned: a number, or a 1-D list, array or tensor of scores; bools count as 1 and 0.

    A list may also hold the 1-D scores of each batch.

    Raises TaskError for anything else, such as complex numbers, one bool, or values that are not finite.
    """
    if isinstance(result, tuple) and not any(isinstance(x, (Tensor, np.ndarray)) for x in result):
        raise TaskError(
            f"evaluate of {what} returned a tuple of {len(result)}: return one metric, as a float or as a list of the "
            "scores of all samples"
        )
    try:
        values = torch.as_tensor(_joined(result)).detach().cpu()
    except Exception as error:  # raised by whatever it returned
        raise TaskError(
            f"evaluate of {what} returned {type(result).__name__}: "
            "return a float or the scores of all samples"
        ) from error
    if values.is_complex() or (values.dtype == torch.bool and not values.dim()):
        kind = "complex numbers" if values.is_complex() else f"{bool(values)}"
        raise TaskError(f"evaluate of {what} returned {kind}: return a float, or the scores of all samples")
    values = values.double()
    if values.dim() > 1 or not values.numel():
        empty = "" if values.numel() else " (is the data empty?)"
        raise TaskError(
            f"evaluate of {what} returned an array of shape {list(values.shape)}: "
            f"return a float or a 1-D array with the score of every sample{empty}"
        )
    bad = ~torch.isfinite(values)
    if bad.any() and values.dim() == 0:
        raise TaskError(
            f"evaluate of {what} returned {values.item()}: return a finite number (is the data empty?)"
        )
    if bad.any():
        first = int(bad.nonzero()[0])
        raise TaskError(
            f"evaluate of {what} returned {values[first].item()} for sample {first} "
            f"({int(bad.sum())} of {values.numel()} are not finite): return finite scores"
        )
    return MetricResult(values.mean().item(), values if values.dim() else None)


def _joined(result: object) -> object:
    """The scores of batch after batch, in a list of 1-D tensors or arrays, as those of all samples."""
    if not isinstance(result, (list, tuple)) or not all(isinstance(x, (Tensor, np.ndarray)) and x.ndim for x in result):
        return result
    parts = [torch.as_tensor(x).detach().cpu() for x in result]
    return torch.cat(parts) if parts else result


def check_lengths(results: Mapping[str, MetricResult]) -> None:
    """Check that evaluate scored the same number of samples in every call, or none in any.

    Raises:
        TaskError: naming the numbers of two calls.
    """
    first, *others = results.items()
    for name, found in others:
        if found.samples != first[1].samples:
            told = [f"{r.samples or 'one number, no'} scores of {n}" for n, r in (first, (name, found))]
            raise TaskError(
                f"evaluate returned {told[0]}, and {told[1]}: score the same samples in the same order in every call"
            )


def direction_warnings(name: str, higher_is_better: bool) -> list[str]:
    """A sentence if a task's direction differs from that of its metric in ``tersor.metrics.METRICS``.

    >>> direction_warnings("perplexity", higher_is_better=True)
    ['metric: perplexity is better when lower, but the task says higher_is_better=True, by which it was judged; ...']
    >>> direction_warnings("perplexity", False), direction_warnings("squared error", True)
    ([], [])
    """
    known = known_metric(name)
    if known is None or known.higher_is_better == higher_is_better:
        return []
    better = "higher" if known.higher_is_better else "lower"
    return [
        said(
            "metric: {name} is better when {better}, but the task says higher_is_better={given}, by which it was "
            "judged; set higher_is_better={wanted}, or rename a metric with the opposite direction",
            name=name, better=better, given=higher_is_better, wanted=known.higher_is_better,
        )
    ]


def paired_interval(
    original: Tensor, compressed: Tensor, *, higher_is_better: bool, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of the drop (positive if the compressed network is worse), from paired scores.

    Scores of 0 and 1 get Tango's score interval for paired proportions (Statistics in Medicine 17, 1998), which remains
    valid when few or no samples differ; others get the percentile bootstrap over samples. Raises TaskError if the
    numbers of samples differ.

    >>> same = torch.ones(1000)
    >>> low, high = paired_interval(same, same, higher_is_better=True)
    >>> round(low, 4), round(high, 4)
    (-0.0038, 0.0038)
    """
    if original.shape != compressed.shape or original.dim() != 1:
        raise TaskError(
            f"evaluate scored {list(original.shape)} samples before and {list(compressed.shape)} after: "
            "score the same samples in the same order every time"
        )
    sign = 1.0 if higher_is_better else -1.0
    drops = sign * (original.double() - compressed.double())
    if all(bool(((scores == 0) | (scores == 1)).all()) for scores in (original, compressed)):
        return tango(int((drops > 0).sum()), int((drops < 0).sum()), drops.numel())
    return bootstrap(drops.numpy(), seed=seed)


def tango(worse: float, better: float, samples: int) -> tuple[float, float]:
    """Tango's 95 % score interval of (worse − better) / samples, from the counts of changed samples.

    >>> [round(bound, 3) for bound in tango(worse=12, better=2, samples=50)]
    [0.061, 0.345]
    """
    centre = (worse - better) / samples

    def statistic(drop: float) -> float:
        linear = -(worse + better) + (2 * samples - worse + better) * drop
        constant = -better * drop * (1 - drop)
        rest = (math.sqrt(linear * linear - 8 * samples * constant) - linear) / (4 * samples)
        variance = samples * (2 * rest + drop * (1 - drop))
        return (worse - better - samples * drop) / math.sqrt(variance) if variance > 0 else math.inf

    def bound(end: float) -> float:
        inside, outside = centre, end
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(statistic(middle)) <= Z95 else (inside, middle)
        return inside

    return bound(-1.0), bound(1.0)


def bootstrap(drops: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The seeded percentile bootstrap's 95 % interval of the mean, resampling with replacement."""
    random = np.random.default_rng(seed)
    step = max(1, CHUNK // drops.size)
    means = np.concatenate(
        [
            drops[random.integers(drops.size, size=(min(step, draws - done), drops.size))].mean(axis=1)
            for done in range(0, draws, step)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


class _Enough(Exception):
    """The evaluation calls `predict` more often than it did before."""


class Scrambled:
    """A predictor whose outputs are random numbers in the form of another's, for so many calls."""

    def __init__(self, predict: Callable[..., Any], calls: int, seed: int) -> None:
        self._predict, self._left = predict, calls
        self._random = torch.Generator().manual_seed(seed)
        self.changed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, of which every float tensor is replaced."""
        if not self._left:
            raise _Enough
        self._left -= 1
        return pytree.tree_map_only(Tensor, self._other, self._predict(*args, **kwargs))

    def _other(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or not x.numel():
            return x
        self.changed = True
        return torch.randn(x.shape, generator=self._random).to(x)


def dependence_warnings(
    evaluate: Callable[[Callable], object], predict: Callable, calls: int, found: Sequence[MetricResult]
) -> list[str]:
    """A sentence if the score does not depend on the network.

    Scores that are equal to the bit for the original and the compressed network are rare but possible; if random
    outputs are scored alike too, ``evaluate`` ignores what ``predict`` returns.

    Args:
        calls: how often ``evaluate`` called ``predict``.
        found: what it returned for the networks.

    >>> dependence_warnings(lambda predict: 0.5, torch.relu, 0, [])
    ['metric: evaluate did not call `predict`, so the score says nothing about the compressed network; score what ...']
    """
    if not calls:
        return [
            said(
                "metric: evaluate did not call `predict`, so the score says nothing about the compressed network; "
                "score what predict(x) returns, not the model itself"
            )
        ]
    if any(not _same(found[0], one) for one in found[1:]) or not _ignores(evaluate, predict, calls, found[0]):
        return []
    return [
        said(
            "metric: evaluate gave random outputs of `predict` the very scores of the network's, so it does not score "
            "the compressed network; score what predict(x) returns, not the model itself"
        )
    ]


def _ignores(evaluate: Callable[[Callable], object], predict: Callable, calls: int, found: MetricResult) -> bool:
    try:
        # A score of few samples may be met by chance.
        for seed in range(3):
            other = Scrambled(predict, calls, seed)
            if not _same(metric_result(evaluate(other)), found) or not other.changed:
                return False
        return True
    except (Exception, SystemExit):  # of code of the user's, for which random numbers may be no outputs
        return False


def _same(one: MetricResult, two: MetricResult) -> bool:
    if one.scores is None or two.scores is None:
        return one.value == two.value
    return torch.equal(one.scores, two.scores)
