"""Correlations of two series."""

import importlib

import torch

from tersor.errors import MetricError
from tersor.metrics.inputs import Values, paired_series
from tersor.process import importing


def spearman(predicted: Values, wanted: Values) -> float:
    """Spearman's rank correlation, −1 to 1, of two series ``[samples]``; ties get their mean rank.

    Raises:
        MetricError: also if one series is constant and therefore has no order.

    >>> spearman([1.0, 2.0, 30.0], [10, 20, 21])
    1.0
    """
    return _correlation("spearmanr", predicted, wanted)


def pearson(predicted: Values, wanted: Values) -> float:
    """Pearson's linear correlation, −1 to 1, of two series ``[samples]``.

    Raises:
        MetricError: also if one series is constant.

    >>> round(pearson([1.0, 2.0, 3.0], [1, 2, 4]), 4)
    0.982
    """
    return _correlation("pearsonr", predicted, wanted)


def _correlation(name: str, predicted: Values, wanted: Values) -> float:
    predicted, wanted = paired_series(predicted, wanted)
    if len(predicted) < 2:
        raise MetricError("one sample has no correlation: pass at least two")
    series = []
    for x, what in ((predicted, "predicted"), (wanted, "wanted")):
        x = x.double()
        if not torch.isfinite(x).all():
            raise MetricError(f"{int((~torch.isfinite(x)).sum())} values of `{what}` are NaN or infinite")
        if bool((x == x[0]).all()):
            raise MetricError(f"`{what}` is {x[0].item()} everywhere: a constant has no correlation")
        series.append(x.numpy())
    with importing():
        statistics = importlib.import_module("scipy.stats")  # imported here, since it takes a second
    return float(getattr(statistics, name)(*series).statistic)
