"""Iterative pruning refuses what it cannot use, by name."""

import pytest
import torch
from torch import nn

from tersor import prune_iteratively
from tersor.errors import TersorError

BATCH = (torch.ones(4, 8),)


def model():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def generator():
    yield from [BATCH, BATCH]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "the model is a NoneType"),
        ({"batches": None}, r"batches\(\) returned NoneType"),
        ({"batches": lambda: 1 / 0}, r"batches\(\) raised ZeroDivisionError"),
        ({"batches": [5]}, "the model or the loss on batch 0 raised TypeError"),
        ({"batches": [BATCH, (torch.ones(4, 9),)]}, "the model or the loss on batch 1 raised RuntimeError"),
        ({"batches": []}, "was not called on any batch"),
        ({"sparsity": None}, "sparsity is None"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": 0}, "steps is 0|in 0 steps"),
        ({"method": None}, "method None is unknown"),
        ({"loss": 5}, "loss is 5"),
        ({"loss": lambda model, batch: 1 / 0}, "the model or the loss on batch 0 raised ZeroDivisionError"),
        ({"retrain": lambda model: 1 / 0}, "retrain raised ZeroDivisionError"),
        ({"token_mask": lambda batch: 5}, "token_mask returned a int"),
        ({"token_mask": lambda batch: torch.ones(3, 3)}, r"token_mask returned the shape \[3, 3\]"),
    ],
)
def test_what_pruning_cannot_use(changes, said):
    given = {"model": model(), "batches": [BATCH], **changes}
    with pytest.raises(TersorError, match=said):
        prune_iteratively(**given)


def test_one_generator_is_not_read_in_every_step():
    data = generator()
    with pytest.raises(TersorError, match="the same generator again, which was read before"):
        prune_iteratively(model(), lambda: data, steps=2)
    assert prune_iteratively(model(), generator, steps=2).sparsity >= 0.5
