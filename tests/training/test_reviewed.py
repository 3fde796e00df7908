"""What a review of training found: each of these was silent, or failed for the wrong reason."""

import copy
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training.tiny_tasks import entropy, finetune, pairs, recipe, tiny_net, tiny_task

import tersor
from tersor.errors import RecipeError, TaskError
from tersor.network.trainable.module import Trainable
from tersor.recipe import Recipe
from tersor.training.checks import check_weights
from tersor.training.data import leaves_of, moved
from tersor.training.objective import labels_of
from tersor.training.state import digest, digest_of


def student_of(net, **options):
    steps = Recipe.model_validate({"steps": ({"quantize": "int8-static"}, {"train": options})})
    return tersor.trainable(tiny_task(net), steps, engine="torch", progress=False)


def test_a_list_of_losses_replaces_that_of_the_preset():
    steps = [{"quantize": None}, {"train": {"distill": ["logits"]}}]
    made = Recipe.model_validate({"base": "int8-qat", "steps": steps})
    assert made.steps[-1].distill == ("logits",)
    made = Recipe.model_validate({"base": "int8-qat", "steps": [{"quantize": None}, {"train": {"distill": []}}]})
    assert made.steps[-1].distill == ()


def test_hints_compare_the_same_values_of_both_networks():
    net = tiny_net()
    for norm in (net[1], net[4]):  # far from the identity
        nn.init.constant_(norm.weight, 3.0)
        nn.init.constant_(norm.bias, 1.0)
    for layer in ("1", "4"):
        steps = recipe(distill={"hints": {"layers": layer}}, rate=1e-9, freeze_batchnorm=0.0, epochs=1)
        done = finetune(tiny_task(net, loss=None, train=lambda: [(x,) for x, _ in pairs()]), steps)
        assert done.subject.trainings[0].history.epochs[0].loss < 0.01
    with pytest.raises(RecipeError, match="name the BatchNorm"):
        finetune(tiny_task(net), recipe(distill={"hints": {"layers": "3"}}))


def test_dropout_and_recurrent_layers_go_on_training_when_batchnorm_is_frozen():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 4)).eval()
    student = student_of(net, dropout=True).freeze_batchnorm()
    x = pairs()[0][0]
    assert not torch.equal(student.train()(x), student(x))
    assert torch.equal(student.eval()(x), student(x))
    still = student_of(net).freeze_batchnorm()
    assert torch.equal(still.train()(x), still(x))


def test_a_shared_weight_shows_each_of_its_quantizers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            x = x.flatten(1)[:, :6]
            return self.b(self.a(self.a(x).relu()).relu())

    student = tersor.trainable(tiny_task(Twice().eval()), "int4-qat", engine="torch", progress=False)
    formats = [(w.name, w.quantizer.spec.format.name) for w in student.latent_weights()]
    assert sorted(formats) == [("a.weight", "int4"), ("a.weight", "int8"), ("b.weight", "int8")]


def test_admm_refuses_a_weight_that_is_projected_with_its_batchnorm():
    quantize = {
        "weights": {"format": "ternary", "granularity": "tensor"}, "activations": {"format": "fp32"},
        "equalize": "off", "bias_correction": False,
    }  # fmt: skip
    steps = Recipe.model_validate(
        {"steps": ({"quantize": quantize}, {"train": {"distill": "none", "proximal": {"admm": {"set": "ternary"}}}})}
    )
    with pytest.raises(RecipeError, match=r"the BatchNorm behind 0.weight .*granularity: channel"):
        finetune(tiny_task(), steps)


def test_a_loss_may_call_the_model_by_position_and_by_name_at_once():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x, mask):
            return self.fc(x * mask)

    x, mask, y = torch.rand(8, 6), torch.ones(8, 6), torch.randint(4, (8,))
    task = tersor.Task(
        "masked", Masked().eval(), (x[:2], mask[:2]), lambda: [(x, mask)], train=lambda: [(x, mask, y)],
        loss=lambda model, batch: F.cross_entropy(model(batch[0], mask=batch[1]), batch[2]),
    )
    assert finetune(task, recipe(distill="auto")).subject.trainings


def test_labels_that_the_loss_takes_out_of_its_batch_are_known():
    net = tiny_net()

    def loss(model, batch):
        labels = batch.pop("labels")
        return F.cross_entropy(model(batch["input"]), labels)

    batches = [{"input": x, "labels": y} for x, y in pairs()]
    task = tiny_task(net, train=lambda: [dict(b) for b in batches], loss=loss)
    assert finetune(task, recipe(distill="dkd")).subject.trainings


def test_a_loss_may_read_the_parameters_of_the_model():
    seen = set()

    def loss(model, batch):
        seen.add(frozenset(n for n, _ in model.named_parameters() if not n.startswith("quantizers.")))
        weights = [model.get_submodule("7").weight, *(p for n, p in model.named_parameters() if n == "0.weight")]
        return entropy(model, batch) + 1e-3 * sum(w.abs().sum() for w in weights)

    done = finetune(tiny_task(loss=loss), recipe())
    (record,) = done.subject.trainings
    assert record.after == pytest.approx(record.history.epochs[-1].held_out, rel=1e-4)
    assert seen == {frozenset(n for n, _ in tiny_net().named_parameters())}


def test_inputs_of_another_size_are_refused():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(x).sum(1) / x.shape[1]

    x = torch.rand(4, 8, 3)
    task = tersor.Task("mean", Mean().eval(), (x[:2],), lambda: [(x,)])
    student = tersor.trainable(task, engine="torch", progress=False)
    with pytest.raises(TaskError, match=r"has size 4 in dimension 1, the network takes 8: free it with Task\(dynamic="):
        student(x[:, :4])
    done = tersor.compress(student, report=False)
    with pytest.raises(tersor.TersorError, match="has the size 4 in dimension 1"):
        done(x[:, :4])
    free = tersor.Task("mean", Mean().eval(), (x[:2],), lambda: [(x,)], dynamic={"x": {1: "length"}})
    assert tersor.trainable(free, engine="torch", progress=False)(x[:, :4]).shape == (4, 4)


def test_a_rejected_training_is_logged(caplog):
    def loss(model, batch):
        found = entropy(model, batch)
        return found.detach() * 2 - found if model.training else found

    done = finetune(tiny_task(loss=loss), recipe(optimizer="sgd", rate=0.2, re_estimate=False))
    assert not done.subject.trainings[0].kept
    assert any("made the network worse and is not kept" in r.message for r in caplog.records)


def test_a_channel_that_is_all_but_dead_does_not_outweigh_the_others():
    net = tiny_net()
    with torch.no_grad():
        net[0].weight[0] *= 1e-20
        net[1].running_var[0] = 1e-40
    steps = recipe(clip=1.0, optimizer="sgd", rate=1e-3)
    assert finetune(tiny_task(net), steps).subject.trainings[0].history.epochs
    student = student_of(net)
    entropy(student.train(), pairs()[0]).backward()
    gradients = {n: p.grad.abs().max().item() for n, p in student.named_parameters() if p.grad is not None}
    assert max(gradients.values()) < 1e6


def test_masks_of_infinities_are_no_reason_to_stop():
    student = nn.Sequential(nn.Linear(2, 2))
    student.register_buffer("mask", torch.tensor([float("inf"), 1.0]))
    check_weights(student, 1)


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


def test_batches_of_other_libraries_are_structures():
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    for batch in (UserDict(x=x, y=y), Batch(x, y)):
        there = moved(batch, torch.device("meta"))
        assert type(there) is type(batch)
        assert {leaf.device.type for leaf in leaves_of(there)} == {"meta"}
        assert {leaf.device.type for leaf in leaves_of(batch)} == {"cpu"}
        assert labels_of(batch, (x,)) is y
        assert digest_of(batch) != digest_of(type(batch)(x=x, y=y + 1))


def test_extra_state_of_a_model_has_a_digest():
    one, other = ({"a": torch.zeros(1), "extra": {"version": 1}} for _ in range(2))
    assert digest(one) == digest(other)


def test_the_state_of_a_student_of_other_bits_is_refused():
    four, two = (tersor.trainable(tiny_task(), n, engine="torch", progress=False) for n in ("int4-qat", "int2-qat"))
    with pytest.raises(RuntimeError, match=r"quantizers.*codes from -8 to 7.*from -2 to 1"):
        two.load_state_dict(four.state_dict())
    again = copy.deepcopy(four)
    assert isinstance(again, Trainable)
    again.load_state_dict(four.state_dict())
