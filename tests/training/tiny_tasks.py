"""Tiny tasks that train in a fraction of a second."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tersor
from tersor.training.loop import fit
from tersor.training.objective import Objective
from tersor.training.setting import Setting
from tersor.turns import turn


def tiny_net(seed: int = 0, outputs: int = 4, norm: bool = True, width: int = 6) -> nn.Module:
    """[batch, 3, 6, 6] to [batch, outputs]: two convolutions with BatchNorm and a linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU()]
        second = [nn.Conv2d(width, width, 3), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU()]
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(4 * width, outputs)).eval()


def pairs(count: int = 3, rows: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of pictures with labels below 4."""
    draws = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(rows, 3, 6, 6, generator=draws), torch.randint(4, (rows,), generator=draws)) for _ in range(count)
    ]


def entropy(model, batch) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def tiny_task(net: nn.Module | None = None, **fields) -> tersor.Task:
    """The network with three batches, for calibration and for training; ``fields`` replace its own."""
    data = pairs()
    given = {"train": lambda: data, "loss": entropy, "calibration": lambda: [(x,) for x, _ in data], **fields}
    return tersor.Task("tiny", net or tiny_net(), (torch.zeros(2, 3, 6, 6),), **given)


def recipe(**options) -> tersor.Recipe:
    """8 bits, then training with these options."""
    train = {"epochs": 2, "distill": "none", **options}
    steps = ({"quantize": "int8-static"}, {"train": train})
    return tersor.Recipe.model_validate({"steps": steps})


def finetune(task: tersor.Task, steps: tersor.Recipe | None = None, **options) -> tersor.Compressed:
    """``tersor.finetune`` in the engine torch, without a report."""
    given = {"engine": "torch", "report": False, "progress": False, "threads": 1, **options}
    return tersor.finetune(task, steps or recipe(), **given)


def tensors_of(done: tersor.Compressed) -> dict[str, Tensor]:
    """All tensors of the network, by name."""
    assert done.subject.network is not None
    return dict(done.subject.network.tensors())


def same(one: tersor.Compressed, other: tersor.Compressed) -> bool:
    """Whether two results are equal bit for bit."""
    a, b = tensors_of(one), tensors_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


class Stopped(BaseException):
    """What stops a training from outside, like Ctrl-C."""


def student_of(net: nn.Module | None = None, steps: tersor.Recipe | None = None, **fields):
    """A calibrated student of the network; give deep copies of it to ``trained``."""
    return tersor.trainable(tiny_task(net, **fields), steps or recipe(), engine="torch", progress=False)


def trained(student, loss=entropy, data=None, distillation=None, setting=None, **options):
    """Train a student in place by the loop alone; its history."""
    step = recipe(**options).steps[1]
    data = pairs() if data is None else data
    objective = Objective(loss, distillation)
    with turn():
        return fit(student, objective, data if callable(data) else lambda: data, step, setting or Setting())


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same tensors, bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
