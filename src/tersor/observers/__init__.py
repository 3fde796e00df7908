"""A stream of tensors → Statistics, which can be merged → a range.

Every estimator reads the same Statistics, so one pass over the data serves them all. EasyQuant, which needs a layer's
weights, is a solver.
"""

from tersor.observers.admm import Admm
from tersor.observers.base import Observer
from tersor.observers.channels import Channels
from tersor.observers.compare import Estimate, compare, range_error, relative_error
from tersor.observers.ema import MovingAverage
from tersor.observers.histogram import Histogram
from tersor.observers.kl import KullbackLeibler, kl_threshold
from tersor.observers.minmax import MinMax
from tersor.observers.mse import MeanSquaredError
from tersor.observers.percentile import Percentile
from tersor.observers.quality import CalibrationQuality, assess
from tersor.observers.sample import Sample
from tersor.observers.statistics import Statistics, merge, observe, same_batch

OBSERVERS: dict[str, Observer] = {
    "minmax": MinMax(),
    "ema": MovingAverage(),
    "percentile": Percentile(),
    "kl": KullbackLeibler(),
    "mse": MeanSquaredError(),
    "admm": Admm(),
}
"""All range estimators by name, with their default options; a recipe's ``range`` names one and may set its options."""

__all__ = [
    "OBSERVERS",
    "Admm",
    "CalibrationQuality",
    "Channels",
    "Estimate",
    "Histogram",
    "KullbackLeibler",
    "MeanSquaredError",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Sample",
    "Statistics",
    "assess",
    "compare",
    "kl_threshold",
    "merge",
    "observe",
    "range_error",
    "relative_error",
    "same_batch",
]
