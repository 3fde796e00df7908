"""A student learns from a teacher, and nothing else changes."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from tersor.errors import RecipeError, TaskError
from tersor.recipe import Train
from tersor.tables import made
from tersor.training.losses import LOSSES, Distillation, FeatureLoss, Features, Layers, Outputs
from tersor.training.losses.features import run
from tests.training.networks import Tapped, bert, captured, pictures

X = (torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)
IDS = {"input_ids": torch.arange(30).reshape(6, 5) % 20}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def distillation(names, student, teacher, example=X):
    return Distillation({name: made(LOSSES, name, "loss") for name in names}, student, teacher, example)


def networks(name):
    """A small student, a larger teacher and a batch, for a loss of pictures or of Transformers."""
    if name in ("hidden-states", "attention-maps"):
        return bert(0), bert(1, width=16, blocks=4), IDS
    return pictures(0), pictures(1, width=8), X


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_when_a_student_is_trained_by_it_alone(name):
    student, teacher, inputs = networks(name)
    distilled = distillation([name], student, teacher, inputs)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    parameters, values = [*student.parameters(), *distilled.parameters()], []
    with distilled:
        for _ in range(12):
            value = distilled(run(student, inputs), inputs, LABELS)
            values.append(value.item())
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            with torch.no_grad():
                torch._foreach_add_(parameters, [g.sign() for g in gradients], alpha=-1e-3)
    assert values[-1] < 0.9 * values[0]
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert teacher.training


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_with_the_teachers_weights_has_nothing_to_learn(name):
    student, _, inputs = networks(name)
    teacher = type(student)(student.config) if hasattr(student, "config") else pictures()
    teacher.load_state_dict(student.state_dict())
    distilled = distillation([name], student.eval(), teacher.eval(), inputs)
    assert not list(distilled.parameters())
    with distilled:
        assert distilled(run(student, inputs), inputs, LABELS).item() == pytest.approx(0, abs=1e-3)


def test_the_losses_are_added_by_their_weights():
    student, teacher = pictures().eval(), pictures(1).eval()
    losses = {"logits": {"weight": 0.3}, "mse": {"weight": 0.5}, "attention-transfer": {"weight": 7.0}}
    made_ = {name: made(LOSSES, {name: options}, "loss") for name, options in losses.items()}
    distilled = Distillation(made_, student, teacher, X)
    with distilled:
        total = distilled(student(*X), X)
        parts = distilled.parts(student(*X), X)
    torch.testing.assert_close(total, 0.3 * parts["logits"] + 0.5 * parts["mse"] + 7 * parts["attention-transfer"])
    torch.testing.assert_close(parts["logits"], made_["logits"](*(outputs(n) for n in (student, teacher))))
    assert distilled.task_share == pytest.approx(0.2)
    assert distillation(["hints"], student, teacher).task_share == 1
    assert distillation(["logits", "mse"], student, teacher).task_share == 0


def outputs(net):
    return Outputs(net(*X))


def test_projections_are_made_between_other_widths_from_the_seed_alone():
    student, teacher = pictures(), pictures(1, width=8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = distillation(["hints"], student, teacher)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = distillation(["hints"], student, teacher)
    assert {k: tuple(v.shape) for k, v in first.state_dict().items()} == {
        f"projections.hints_{k}.weight": (8 * 2**k, 4 * 2**k, 1, 1) for k in range(3)
    }
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    other = Distillation(first.losses, student, teacher, X, seed=1)
    assert not torch.equal(other.projections["hints_0"].weight, first.projections["hints_0"].weight)


def test_the_projection_gets_a_gradient():
    student, teacher = bert(), bert(1, width=16)
    distilled = distillation(["hidden-states"], student, teacher, IDS)
    with distilled:
        distilled(student(**IDS), IDS).backward()
    assert [tuple(p.grad.shape) for p in distilled.parameters()] == [(16, 8)] * 2


def test_a_hint_without_projection_is_refused_before_training_with_both_shapes():
    hints = made(LOSSES, {"hints": {"project": False}}, "loss")
    message = r"hints, layer1: the student's \[6, 4, 16, 16\] and the teacher's \[6, 8, 16, 16\]: their widths differ"
    with pytest.raises(RecipeError, match=message):
        Distillation({"hints": hints}, pictures(), pictures(1, width=8), X)


def test_a_teacher_whose_outputs_do_not_fit_is_refused_before_training():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    with pytest.raises(TaskError, match=r"auto: the student returns \[6, 4\] and the teacher \[6, 10\]"):
        distillation(["auto"], pictures(), teacher)


def test_the_student_is_no_teacher_of_itself():
    student = pictures()
    with pytest.raises(TaskError, match="the teacher is the student itself"):
        distillation(["auto"], student, nn.DataParallel(student))


def test_a_layer_without_a_map_of_attention_is_refused():
    maps = made(LOSSES, {"attention-maps": {"layers": "bert.encoder.layer.*"}}, "loss")
    with pytest.raises(RecipeError, match=r"attention-maps: the layer bert.encoder.layer.0 .*attn_implementation="):
        Distillation({"attention-maps": maps}, bert(), bert(1), IDS)


def test_a_student_that_ran_outside_is_refused():
    student, teacher = pictures(), pictures(1)
    distilled = distillation(["hints"], student, teacher)
    with pytest.raises(TaskError, match="no features of layer1, layer2, layer3 were recorded: enter `with`"):
        distilled(student(*X), X)


def test_distillation_without_a_loss_is_refused():
    with pytest.raises(RecipeError, match="distillation needs a loss: name one"):
        distillation([], pictures(), pictures(1))


@dataclass(frozen=True)
class Means(FeatureLoss):
    """Compares the means over everything but the batch."""

    layers: Layers = "head"
    factor: float = 1.0
    weight: float = 3.0
    name: ClassVar[str] = "means"

    def of(self, student, teacher):
        return self.factor * (student.flatten(1).mean(1) - teacher.flatten(1).mean(1)).square().mean()


def test_a_new_loss_costs_one_entry_of_the_table(monkeypatch):
    monkeypatch.setitem(LOSSES, "means", Means)
    step = Train(distill={"means": {"factor": 2, "layers": ["layer3", "head"]}})
    loss = made(LOSSES, step.distill[0], "loss")
    student, teacher = pictures().eval(), pictures(1, width=8).eval()
    distilled = Distillation({"means": loss}, student, teacher, X)
    assert distilled.pairs == {"means": [("layer3", "layer3"), ("head", "head")]}
    with distilled, Features(student, ["layer3"]) as ours, Features(teacher, ["layer3"]) as theirs:
        out = student(*X)
        total = distilled(out, X)
        features = [(ours.take()["layer3"], theirs.take()["layer3"]), (out, teacher(*X))]
    expected = sum((a.flatten(1).mean(1) - b.flatten(1).mean(1)).square().mean() for a, b in features)
    torch.testing.assert_close(total, 3 * 2 * expected)


def test_one_layer_can_be_read_by_several_losses():
    names = ["hints", "attention-transfer", "similarity", "relational"]
    student, teacher = pictures(), pictures(1)
    distilled = distillation(names, student, teacher)
    with distilled:
        parts = distilled.parts(student(*X), X)
    assert list(parts) == names
    assert all(isinstance(distilled.losses[n], FeatureLoss) and part > 0 for n, part in parts.items())


def test_autocast_of_the_caller_reaches_the_teacher_but_not_the_losses():
    student, teacher = pictures(), pictures(1)
    distilled = distillation(["logits", "hints", "similarity"], student, teacher)
    with distilled, torch.autocast("cpu", torch.bfloat16):
        out = student(*X)
        parts = distilled.parts(out, X)
    assert out.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 and part.isfinite() for part in parts.values())


def test_a_trainable_graph_learns_from_a_module():
    student = Tapped()
    distilled = distillation(["attention-transfer"], student, pictures())
    assert distilled.pairs == {"attention-transfer": [("layer1", "layer1"), ("layer2", "layer2")]}
    with distilled:
        distilled(student(*X), X).backward()
    assert all(w.grad.abs().sum() > 0 for w in student.weights)


def test_neither_network_is_a_part_of_the_module():
    distilled = distillation(["hints", "logits"], pictures(), pictures(1))
    assert not distilled.state_dict()
    assert distilled.train() is distilled


def test_a_captured_network_learns_from_the_model_whose_layers_it_keeps():
    teacher = pictures(1, width=8).eval()
    model = pictures().eval()
    student = captured(model, X)
    distilled = distillation(["hints", "relational"], student, teacher)
    assert distilled.pairs["hints"] == [(f"layer{k}", f"layer{k}") for k in (1, 2, 3)]
    names = ["layer1", "layer2.1", "head"]
    with Features(student.eval(), names) as ours, Features(model, names) as own:
        student(*X), model(*X)
        for a, b in zip(ours.take().values(), own.take().values(), strict=True):
            torch.testing.assert_close(a, b)
    with distilled:
        distilled(student.train()(*X), X).backward()
    missing = [name for name, p in student.named_parameters() if p.grad is None]
    assert missing == ["head.bias", "head.weight"]


def test_the_teacher_runs_in_eval_mode_without_a_graph():
    student, teacher, modes = pictures().train(), pictures(1).train(), []
    teacher.head.register_forward_hook(lambda m, _, out: modes.append((m.training, out.requires_grad)))
    distilled = distillation(["logits"], student, teacher)
    with distilled:
        distilled(student(*X), X)
    assert modes == [(False, False)] * 2
    assert all(m.training for net in (student, teacher) for m in net.modules())
