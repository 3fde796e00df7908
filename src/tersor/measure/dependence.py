"""Whether an evaluation scores what the network predicts, or another model whatever it is given."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.measure.metric import MetricResult, metric_result
from tersor.words import said


class _Enough(Exception):
    """The evaluation calls `predict` more often than it did before."""


class Scrambled:
    """A predictor whose outputs are random numbers in the form of another's, for so many calls."""

    def __init__(self, predict: Callable[..., Any], calls: int) -> None:
        self._predict, self._left = predict, calls
        self._random = torch.Generator().manual_seed(0)
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
    other = Scrambled(predict, calls)
    try:
        return _same(metric_result(evaluate(other)), found) and other.changed
    except (Exception, SystemExit):  # of code of the user's, for which random numbers may be no outputs
        return False


def _same(one: MetricResult, two: MetricResult) -> bool:
    if one.scores is None or two.scores is None:
        return one.value == two.value
    return torch.equal(one.scores, two.scores)
