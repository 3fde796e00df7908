"""What a training minimizes is the task's loss and the distillation from the same calls of the model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.training.losses import LOSSES, Distillation, Outputs
from tersor.training.objective import Objective


@pytest.mark.parametrize("form", [tuple, lambda pair: {"pixels": pair[0], "label": pair[1]}])
def test_losses_that_read_labels_get_those_of_the_batch(form):
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.tensor([0, 2, 1, 1, 0])
    dkd = LOSSES["dkd"]()

    def loss(model, batch):
        pixels, label = batch.values() if isinstance(batch, dict) else batch
        return F.cross_entropy(model(pixels), label)

    objective = Objective(loss, Distillation({"dkd": dkd}, student, teacher, (x,)))
    with objective.listening():
        found = objective(student, form((x, y)))
    expected = F.cross_entropy(student(x), y) + dkd(Outputs(student(x)), Outputs(teacher(x)), y)
    assert torch.allclose(found, expected)
