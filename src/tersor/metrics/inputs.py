"""Checks of scores, labels and texts before a metric is computed."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tersor.errors import MetricError
from tersor.packages import needing

Values = Tensor | ArrayLike


def as_tensor(values: Values, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricError(f"`{what}` is not an array of numbers: {error}") from error
    if not tensor.numel():
        raise MetricError(f"`{what}` is empty, of shape {list(tensor.shape)}: pass at least one sample")
    return tensor


def scored(scores: Values, labels: Values, ignore: int | None = None) -> tuple[Tensor, Tensor]:
    """Scores and labels, checked; with ``ignore``, as ``[kept, classes]`` and ``[kept]`` without the ignored ones."""
    scores = as_tensor(scores, "scores")
    labels = as_tensor(labels, "labels").to(scores.device)
    if scores.ndim < 1 or scores.shape[:-1] != labels.shape:
        raise MetricError(
            f"scores of shape {list(scores.shape)} and labels of shape {list(labels.shape)}; "
            f"scores must have one more dimension, the classes, at the end{_remedy(scores, labels)}"
        )
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise MetricError(f"labels are {labels.dtype}: pass class numbers as integers, labels.long()")
    labels = labels.long()
    if ignore is not None:
        kept = labels != ignore
        if not kept.any():
            raise MetricError(f"all {labels.numel()} labels are {ignore}, which is ignored: nothing is left to score")
        scores, labels = scores[kept], labels[kept]
    wrong = labels[(labels < 0) | (labels >= scores.shape[-1])]
    if len(wrong):
        raise MetricError(f"label {int(wrong[0])} with {scores.shape[-1]} classes: labels count from 0")
    nan = int(scores.isnan().sum())
    if nan:
        raise MetricError(
            f"{nan} of {scores.numel()} scores are NaN: find the first layer of the model that outputs one"
        )
    return scores, labels


def _remedy(scores: Tensor, labels: Tensor) -> str:
    if labels.shape == scores.shape and scores.ndim > 1 and scores.shape[-1] > 1:
        return "; labels that are one-hot become class numbers by labels.argmax(-1)"
    return "; drop the last dimension of the labels by labels.squeeze(-1)" if labels.shape[-1:] == (1,) else ""


def paired_series(predicted: Values, wanted: Values) -> tuple[Tensor, Tensor]:
    predicted, wanted = as_tensor(predicted, "predicted").cpu(), as_tensor(wanted, "wanted").cpu()
    if predicted.ndim != 1 or predicted.shape != wanted.shape:
        raise MetricError(
            f"`predicted` has shape {list(predicted.shape)}, `wanted` {list(wanted.shape)}: both must be [samples]"
        )
    return predicted, wanted


def check_same_count(said: Sequence[Any], wanted: Sequence[Any]) -> None:
    if len(said) != len(wanted) or not len(said):
        raise MetricError(f"{len(said)} said and {len(wanted)} wanted: pass equally many of both, at least one")


def import_library(module: str, what: str) -> Any:
    with needing(what, "metrics", [module.partition(".")[0]], MetricError):
        return importlib.import_module(module)
