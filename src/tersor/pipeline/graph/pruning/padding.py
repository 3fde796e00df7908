"""Batches that know which of their tokens are real, so that padding decides nothing."""

from torch import Tensor

from tersor.pipeline.graph.batches import Batch
from tersor.task import Task, batch_size
from tersor.task.calibration import mask_of


class Padded(tuple[Tensor, ...]):
    """A batch some of whose tokens are padding.

    Attributes:
        mask: bool ``[batch, length]``, True for real tokens.
    """

    mask: Tensor


def padded(task: Task, batch: Batch) -> Batch:
    """The batch with its mask, if the task has one.

    Raises:
        CalibrationError: ``token_mask`` raises, or returns something else.
    """
    if task.token_mask is None:
        return batch
    made = Padded(batch)
    made.mask = mask_of(task.token_mask, batch, batch_size(batch))
    return made


def part_of(batch: Batch, start: int, end: int) -> Batch:
    """Some samples of a batch, as a batch, with their part of its mask."""
    samples = tuple(x[start:end] if x.ndim else x for x in batch)
    if not isinstance(batch, Padded):
        return samples
    found = Padded(samples)
    found.mask = batch.mask[start:end]
    return found


def real(batch: Batch, value: Tensor, channels: int = -1) -> Tensor | slice:
    """The rows of real tokens among all rows of a value, one for each position of its other dimensions.

    >>> import torch
    >>> batch = Padded((torch.zeros(2, 3),))
    >>> batch.mask = torch.tensor([[True, True, False], [True, False, False]])
    >>> real(batch, torch.zeros(2, 3, 8)).tolist(), real(batch, torch.zeros(2, 8))
    ([0, 1, 3], slice(None, None, None))
    """
    places = value.movedim(channels, -1).shape[:-1]
    if not isinstance(batch, Padded) or places not in (batch.mask.shape, (batch.mask.numel(),)):
        return slice(None)
    return batch.mask.flatten().nonzero()[:, 0]


def real_tokens(batch: Batch, value: Tensor) -> Tensor:
    """The vectors of real tokens of an output ``[batch, length, …, channels]``; another one as it is."""
    if not isinstance(batch, Padded) or value.ndim < 3 or value.shape[:2] != batch.mask.shape:
        return value
    return value[batch.mask]
