"""A training that was stopped goes on as if nothing had happened, and takes no state of another one."""

import copy
import random

import numpy as np
import pytest
import torch
from training.tiny_tasks import Stopped, entropy, equal, pairs, student_of, tiny_net, trained

import tersor
from tersor.errors import CheckpointError
from tersor.training import state
from tersor.training.losses import Distillation, Hints
from tersor.training.setting import Setting

EVERYTHING = {"optimizer": "adamw", "average": 0.9, "warmup": 0.2, "clip": 1.0, "epochs": 2}


@pytest.fixture(scope="module")
def made():
    return student_of()


def shuffled():
    """Batches in a new order, with noise of all three generators."""
    data = pairs()
    random.shuffle(data)
    for x, y in data:
        yield x + 0.1 * torch.rand(len(x), 1, 1, 1) + 0.1 * float(np.random.rand()), y


def stopping(at, loss=entropy):
    """The loss, which stops training in step ``at``, from 1."""
    calls = []

    def stops(model, batch):
        calls.append(1)
        if model.training and len(calls) == at:
            raise Stopped
        return loss(model, batch)

    return stops


def resumed(made, folder, at, hints=False, **options):
    """The student after a training that was stopped in that step, and its history."""
    setting = Setting(judge=judge, folder=folder)
    make = teaching if hints else lambda made: (copy.deepcopy(made), None)
    student, distillation = make(made)
    with pytest.raises(Stopped):
        trained(student, stopping(at), shuffled, distillation, setting, **options)
    student, distillation = make(made)
    return student, trained(student, entropy, shuffled, distillation, setting, **options)


def teaching(made):
    student, teacher = copy.deepcopy(made), tiny_net(1, width=9)
    return student, Distillation({"hints": Hints((("4", "4"),))}, student, teacher, (torch.zeros(2, 3, 6, 6),))


def curve(history):
    return [(e.number, e.steps, e.loss, e.held_out, e.rate) for e in history.epochs]


def judge(model):
    return float(entropy(model, pairs(1, seed=7)[0]))


@pytest.mark.parametrize("at", [2, 5])
def test_a_resumed_training_equals_one_that_was_never_stopped(made, tmp_path, at):
    straight = copy.deepcopy(made)
    whole = trained(straight, entropy, shuffled, None, Setting(judge=judge), **EVERYTHING)
    student, history = resumed(made, tmp_path, at, **EVERYTHING)
    assert equal(student, straight)
    assert curve(history) == curve(whole)
    assert (history.before, history.notes) == (whole.before, whole.notes)


def test_projections_of_hints_are_resumed(made, tmp_path):
    straight, distillation = teaching(made)
    trained(straight, entropy, shuffled, distillation, Setting(judge=judge), epochs=2)
    assert equal(resumed(made, tmp_path, 5, hints=True, epochs=2)[0], straight)


def test_admm_is_resumed(tmp_path):
    train = {"distill": "none", "proximal": "admm"}
    quantize = {"weights": {"format": "ternary"}}
    steps = tersor.Recipe.model_validate({"steps": ({"quantize": quantize}, {"train": train})})
    made = student_of(steps=steps)
    straight = copy.deepcopy(made)
    options = {"proximal": {"admm": {"every": 2}}, "epochs": 2, "optimizer": "sgd", "rate": 0.01}
    trained(straight, entropy, shuffled, None, Setting(judge=judge), **options)
    assert equal(resumed(made, tmp_path, 5, **options)[0], straight)


def test_a_finished_training_is_not_repeated(made, tmp_path):
    one, other, setting = copy.deepcopy(made), copy.deepcopy(made), Setting(judge=judge, folder=tmp_path)
    first = trained(one, entropy, shuffled, None, setting, **EVERYTHING)
    second = trained(other, stopping(1), shuffled, None, setting, **EVERYTHING)
    assert equal(one, other)
    assert first == second


def test_patience_waits_for_the_end_of_the_schedule(made):
    # The schedule ends within epoch 3 of 6, so that epochs 4 and 5 are the first that count.
    values = iter([9.0, 5.0, 6.0, 7.0, 8.0, 8.5])
    history = trained(
        copy.deepcopy(made), entropy, shuffled, None, Setting(judge=lambda _: next(values)), re_estimate=False,
        epochs=6, patience=2, schedule={"mixing": {"end": 0.45}},
    )
    assert [e.number for e in history.epochs] == [1, 2, 3, 4, 5]


def test_patience_returns_the_best_epoch_also_of_a_resumed_training(made, tmp_path):
    options = {"epochs": 6, "patience": 2, "optimizer": "sgd", "rate": 1e-3}
    student, best = copy.deepcopy(made), copy.deepcopy(made)
    values = iter([9.0, 5.0, 3.0, 4.0, 4.0])
    history = trained(student, entropy, shuffled, None, Setting(judge=lambda _: next(values)), re_estimate=False,
                      **options)
    # The held-out loss rises behind epoch 2, so the weights are those of a training that was stopped there.
    with pytest.raises(Stopped):
        trained(best, stopping(7), shuffled, None, Setting(), re_estimate=False, **options)
    assert equal(student, best.eval())
    assert [e.number for e in history.epochs] == [1, 2, 3, 4]
    assert any("stopped early behind epoch 4" in note for note in history.notes)
    assert any("epoch 2 was the best" in note for note in history.notes)

    again, values = copy.deepcopy(made), iter([9.0, 5.0, 3.0, 4.0])
    setting = Setting(judge=lambda _: next(values), folder=tmp_path)
    with pytest.raises(Stopped):
        trained(copy.deepcopy(made), stopping(10), shuffled, None, setting, re_estimate=False, **options)
    values = iter([4.0])
    assert trained(again, entropy, shuffled, None, setting, re_estimate=False, **options).notes == history.notes
    assert equal(again, student)
    final = copy.deepcopy(made)
    assert trained(final, stopping(1), shuffled, None, setting, re_estimate=False, **options).notes == history.notes
    assert equal(final, student)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"data": lambda: pairs(seed=1)}, "the first batch of train"),
        ({"setting": {"seed": 1}}, "the seed was 0, and is 1 now"),
        ({"setting": {"about": {"the network": "b"}}}, "the network was a, and is b now"),
        ({"epochs": 3}, "the number of steps was 6, and is 9 now"),
        ({"optimizer": "sgd"}, "the optimizer was AdamW, and is SGD now"),
    ],
)
def test_the_state_of_another_training_is_refused(made, tmp_path, change, names):
    setting = {"about": {"the network": "a"}, "folder": tmp_path}
    trained(copy.deepcopy(made), data=pairs, setting=Setting(**setting))
    change = dict(change)
    setting |= change.pop("setting", {})
    data = change.pop("data", pairs)
    with pytest.raises(CheckpointError, match=names):
        trained(copy.deepcopy(made), data=data, setting=Setting(**setting), **change)


def test_the_state_of_another_number_of_processes_is_refused(tmp_path):
    state.save(tmp_path, {}, {"the number of processes": 2})
    with pytest.raises(CheckpointError, match="the number of processes was 2, and is 1 now"):
        state.load(tmp_path, {"the number of processes": 1})


@pytest.mark.parametrize("damage", ["half", "flip", "empty", "text", "folder"])
def test_a_damaged_state_is_refused(tmp_path, damage):
    path = state.save(tmp_path, {"x": torch.arange(64.0)}, {})
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
        path.write_bytes({"half": whole[: len(whole) // 2], "flip": flipped, "empty": b"", "text": b"{}" * 99}[damage])
    with pytest.raises(CheckpointError, match="is damaged"):
        state.load(tmp_path, {})


def test_a_state_that_does_not_fit_is_refused(made, tmp_path):
    setting = Setting(folder=tmp_path)
    trained(copy.deepcopy(made), setting=setting)
    found = state.load(tmp_path, about := state_about(tmp_path))
    del found["parts"]["student"]["7.weight"]
    state.save(tmp_path, found, about)
    with pytest.raises(CheckpointError, match=r"does not fit this training.*7.weight"):
        trained(copy.deepcopy(made), setting=setting)


def state_about(folder):
    import json

    from safetensors import safe_open

    with safe_open(str(folder / state.FILE), framework="pt") as file:
        return json.loads(file.metadata()["training"])["about"]


def test_data_that_the_seed_does_not_determine_is_said_and_can_be_resumed(made, tmp_path):
    draws = np.random.default_rng(0)

    def own():
        return [(x + float(draws.random()), y) for x, y in pairs()]

    history = trained(copy.deepcopy(made), data=own, setting=Setting(folder=tmp_path))
    assert any("does not draw from the global generators" in note for note in history.notes)
    trained(copy.deepcopy(made), data=own, setting=Setting(folder=tmp_path))


def test_what_cannot_be_saved_is_refused_in_the_first_step(made, tmp_path):
    def hook(named):
        optimizer = torch.optim.SGD([p for _, p in named], lr=0.1)
        optimizer.register_step_post_hook(lambda o, *_: o.state[named[0][1]].update(odd=object()))
        return optimizer

    def loss(model, batch):
        steps.append(1)
        return entropy(model, batch)

    steps = []
    with pytest.raises(CheckpointError, match="holds a object"):
        trained(copy.deepcopy(made), loss, setting=Setting(folder=tmp_path, optimizer=hook))
    assert len(steps) == 1


def test_a_folder_that_cannot_be_written_is_refused_before_training(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trained(copy.deepcopy(made), stopping(1), setting=Setting(folder=tmp_path / "file" / "deeper"))
