"""A training that would fail is refused before anything is observed, and what it did stands in the report."""

import importlib.util
import math
from dataclasses import replace

import pytest
import torch
from parts import task_of
from sample_report import resnet20
from torch import nn

import tersor
from tersor.errors import RecipeError, TaskError
from tersor.pipeline.graph.compress import compress
from tersor.pipeline.graph.finetune import finetune
from tersor.pipeline.graph.reporting.trainings import recorded, with_trainings
from tersor.pipeline.graph.training.checks import check_training
from tersor.pipeline.graph.training.step import Place, Trained
from tersor.recipe import Recipe, resolve
from tersor.training.history import Epoch, History


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))


def training_task(**changes):
    task = task_of(net(), (3, 8, 8))
    return replace(task, **{"train": lambda: list(task.calibration()), **changes})


def of(loss, data):
    return training_task(loss=loss, train=lambda: data)


BATCH = (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))
ALONE = Recipe(steps=[{"quantize": {}}, {"train": {"distill": "none"}}])
FAULTS = {
    "no data": (training_task(train=None), "int8-qat", "no training data: give Task(train=…)"),
    "no batch": (training_task(train=list), "int8-qat", "train() yielded no batch"),
    "no loss": (training_task(), ALONE, "there is nothing to learn: give Task(loss=…)"),
    "no step": (training_task(), Recipe(steps=[{"train": {}}]), "has no step `quantize`"),
    "a batch that is no argument": (training_task(train=lambda: ["x"]), "int8-qat", "train() yielded a str"),
    "a batch without labels": (of(lambda m, b: m(b[0]).sum() * b[1], [(BATCH[0],)]), "int8-qat", "IndexError"),
    "labels out of range": (
        of(lambda m, b: nn.functional.cross_entropy(m(b[0]).mean((2, 3)), b[1] + 9), [BATCH]),
        "int8-qat",
        "range|bounds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_that_would_fail_is_refused_before_anything_runs(fault, monkeypatch):
    task, recipe, words = FAULTS[fault]
    monkeypatch.setattr("tersor.pipeline.graph.compress.start", lambda *_: pytest.fail("the network was captured"))
    with pytest.raises((TaskError, RecipeError)) as error:
        compress(task, recipe, "torch", report=False)
    assert any(word in str(error.value) for word in words.split("|"))


def test_a_rehearsal_leaves_model_and_random_state_alone():
    def loss(model, batch):
        model.train()
        return model(*batch).square().mean()

    task = training_task(loss=loss, train=lambda: [(torch.rand(4, 3, 8, 8),)])
    before, random = {k: v.clone() for k, v in task.model.state_dict().items()}, torch.get_rng_state()
    check_training(task, resolve("int8-qat"), Place())
    assert not task.model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())


def test_missing_packages_are_named_with_their_command(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else found(name))
    with pytest.raises(TaskError, match=r'needs accelerate, not installed here; run: pip install "tersor\[train\]"'):
        finetune(training_task(), engine="torch")
    monkeypatch.undo()
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(TaskError, match="the tracker wandb is not installed here; run: pip install wandb"):
        finetune(training_task(), engine="torch", trackers=["wandb"])


def test_a_recipe_without_training_needs_nothing():
    check_training(training_task(train=None), resolve("int8-static"), Place(trackers=("none",)))


def test_what_is_not_finite_is_kept_as_unknown_and_said():
    history = History((Epoch(1, 4, 0.5, math.nan, 1e-3, 2.0),), 0.1, ("stopped early behind epoch 1",))
    trained = Trained(history, 0.1, math.inf, False, "the loss", ("dropout is off",))
    found = recorded(trained)
    assert (found.after, found.epochs[0].held_out, found.worse) == (None, None, True)
    report = with_trainings(resnet20(), [trained])
    assert report.warnings[:3] == (
        "training made it worse (held-out loss 0.1 → not finite): the network from before training was kept",
        "dropout is off", "stopped early behind epoch 1",
    )  # fmt: skip
    assert report.headline.startswith("Below target: training made it worse")
    assert with_trainings(resnet20(), ()) == resnet20()


@pytest.mark.slow
def test_auto_chooses_an_engine_without_training_and_trains_once():
    passes = []
    task = training_task()
    counted = replace(task, train=lambda: passes.append(1) or list(task.calibration()))
    recipe = resolve("int8-qat")
    done = tersor.compress(counted, recipe, "auto", threads=1)
    assert done.report.engine in ("openvino", "onnxruntime")
    assert [len(one.epochs) for one in done.report.trainings] == [1]
    # A rehearsal, the count of steps, the epoch, and BatchNorm's statistics: nothing twice.
    assert len(passes) <= 4
    assert any(text.startswith("engine auto: chosen by the network before training") for text in done.report.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("judged", [True, False])
def test_a_loop_of_the_users_own_that_spoils_the_network_is_never_silent(judged):
    loss = (lambda model, batch: model(*batch).square().mean()) if judged else None
    student = tersor.trainable(training_task(loss=loss), engine="torch")
    with torch.no_grad():
        next(iter(student.parameters())).mul_(30)
    report = tersor.compress(student).report
    if judged:
        assert [t.worse for t in report.trainings] == [True]
        assert "training made it worse" in report.headline
    assert any("made it worse" in text or text.startswith("after training, ") for text in report.warnings)
