"""Whatever is wrong with data, loss, optimizer or network is named, and what the caller gave stays as it was."""

import copy
from weakref import WeakSet

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training.tiny_tasks import Stopped, entropy, equal, pairs, student_of, tiny_net, tiny_task, trained

import tersor
from tersor.errors import NumericsError, RecipeError, TaskError
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.graph.training.student import float_student
from tersor.training import data
from tersor.training.losses import Distillation, Hints, Logits
from tersor.training.setting import Setting


@pytest.fixture(scope="module")
def made():
    return student_of()


def broken(at, value=float("nan")):
    """Batches of which one holds a value that is not finite."""
    batches = pairs()
    batches[at][0][1, 2, 3, 4] = value
    return batches


class Changing:
    """Other batches in every epoch."""

    def __init__(self, *epochs):
        self.epochs = iter(epochs)

    def __call__(self):
        return next(self.epochs)


LOSSES = {
    "Target 9 is out of bounds.*test_bad_training.py, line": lambda m, b: F.cross_entropy(m(b[0]), b[1] * 0 + 9),
    r"returned the shape \[8\]": lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"),
    "returned a float": lambda m, b: entropy(m, b).item(),
    "returned a NoneType": lambda m, b: None,
    "without a gradient": torch.no_grad()(entropy),
    "depends on no parameter.*call the model that it is given": lambda m, b: entropy(CLOSED, b),
    "AttributeError.*has no attribute 'nothing'": lambda m, b: m.nothing(b),
    "the backward pass of the loss raised RuntimeError": lambda m, b: twice_backward(entropy(m, b)),
    "step 1 is nan, though every value of the network is finite": lambda m, b: entropy(m, b) * float("nan"),
}
CLOSED = tiny_net(3)


def twice_backward(loss):
    loss.backward()
    return loss


@pytest.mark.parametrize("message", LOSSES)
def test_a_loss_that_cannot_be_used_is_named(made, message):
    with pytest.raises((TaskError, NumericsError), match=message):
        trained(copy.deepcopy(made), LOSSES[message])
    assert all(p.grad is None for p in CLOSED.parameters())


DATA = {
    "train.. raised ZeroDivisionError": lambda: 1 / 0,
    "returned a dict": lambda: {"x": 1},
    "returned a NoneType": lambda: None,
    "yielded no batch: let train be a function": lambda: [],
    "too few batches in epoch 2": Changing(*[pairs()] * 2, []),
    "has size 2 in dimension 1, the network takes 3": lambda: [(torch.zeros(8, 2, 6, 6), torch.zeros(8).long())],
    "raised RuntimeError.*type": lambda: [(x.double(), y) for x, y in pairs()],
}


@pytest.mark.parametrize("message", DATA)
def test_training_data_that_cannot_be_used_is_named(made, message):
    with pytest.raises(TaskError, match=message):
        trained(copy.deepcopy(made), data=DATA[message])


def test_data_without_end_needs_a_number_of_steps(made, monkeypatch):
    def endless():
        while True:
            yield from pairs()

    monkeypatch.setattr(data, "ENDLESS", 50)
    with pytest.raises(TaskError, match=r"no end within.*a number of `steps`"):
        trained(copy.deepcopy(made), data=endless)
    assert trained(copy.deepcopy(made), data=endless, steps=4).epochs[-1].steps == 4


def test_a_generator_object_is_refused_before_the_second_epoch(made):
    once = (batch for batch in pairs())
    with pytest.raises(TaskError, match=r"the same generator again.*makes a fresh iterable"):
        trained(copy.deepcopy(made), data=lambda: once)


def test_without_a_loss_a_batch_must_be_the_models_arguments(made):
    student = copy.deepcopy(made)
    distillation = Distillation({"logits": Logits()}, student, tiny_net(), (torch.zeros(2, 3, 6, 6),))
    with pytest.raises(TaskError, match=r"without Task.loss a batch is the tuple of the model's arguments"):
        trained(student, None, [5], distillation)
    with pytest.raises(TaskError, match=r"the argument|the network raised|arguments"):
        trained(student, None, pairs(), distillation)


def test_data_that_is_not_finite_is_named_with_its_step(made):
    with pytest.raises(NumericsError, match=r"loss of step 2 is nan: tensor 0 \[8, 3, 6, 6\] of its batch holds NaN"):
        trained(copy.deepcopy(made), data=broken(1))


def test_the_first_layer_whose_values_are_not_finite_is_named():
    task = tiny_task()
    student = float_student(task, captured(task))
    with torch.no_grad():
        student.get_submodule("3").weight[2] = 3e38
    with pytest.raises(NumericsError, match="step 1 is nan: the first NaN or infinite value is that of the layer 3;"):
        trained(student, average=0.9)


def test_a_weight_that_is_not_finite_is_named(made):
    student = copy.deepcopy(made)
    with torch.no_grad():
        student.get_submodule("3").weight[2, 0, 0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"step 1 is nan: 3.weight holds NaN"):
        trained(student)


def test_a_teacher_whose_values_are_not_finite_is_named(made):
    student, teacher = copy.deepcopy(made), tiny_net()
    distillation = Distillation({"logits": Logits()}, student, teacher, (torch.zeros(2, 3, 6, 6),))
    with torch.no_grad():
        teacher[3].weight[2] = 3e38
    for loss, batches in ((None, [(x,) for x, _ in pairs()]), (entropy, pairs())):
        with pytest.raises(NumericsError, match=r"step 1 is nan: the teacher returned NaN or infinity for its batch"):
            trained(copy.deepcopy(student), loss, batches, distillation)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoiled(made):
    student = copy.deepcopy(made)

    def loss(model, batch):
        out = model(batch[0])
        return (out - out.detach()).square().sum().sqrt()

    with pytest.raises(NumericsError, match=r"the gradient of \S+ is NaN or infinite in step 1, though the loss"):
        trained(student, loss)
    assert all(torch.isfinite(p).all() for p in student.parameters())


def test_an_update_that_is_not_finite_is_named(made):
    with pytest.raises(NumericsError, match=r"of step . .*lower `rate`"):
        trained(copy.deepcopy(made), optimizer={"sgd": {"momentum": 0.0}}, rate=3e38, warmup=0)


def test_a_loss_that_leaves_a_layer_out_is_noted_and_the_layer_stays(made):
    student, before = copy.deepcopy(made), copy.deepcopy(made)
    middle = student.tap("4")
    seen = []
    middle.register_forward_hook(lambda m, a, out: seen.append(out))

    def loss(model, batch):
        seen.clear()
        model(batch[0])
        return seen[0].square().mean()

    history = trained(student, loss)
    assert any("the loss does not depend on" in note and "7.weight" in note for note in history.notes)
    for name in ("7.weight", "7.bias"):
        assert torch.equal(student.get_parameter(name), before.get_parameter(name))


def test_frozen_parameters_stay_and_are_named():
    net = tiny_net()
    for name in ("0.weight", "4.bias"):
        net.get_parameter(name).requires_grad_(False)
    student = student_of(net)
    history = trained(student, average=0.5, weight_decay=0.1)
    assert any("0.weight" in note and "4.bias" in note and "frozen" in note for note in history.notes)
    for name, own in net.named_parameters():
        assert torch.equal(student.get_parameter(name), own) == (name in ("0.weight", "4.bias")), name


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def test_a_shared_parameter_is_one_and_trained_once():
    torch.manual_seed(0)
    batches = [(torch.rand(8, 4), torch.randint(4, (8,))) for _ in range(3)]
    net = Tied().eval()
    task = tiny_task(net, calibration=lambda: [(x,) for x, _ in batches])
    task = type(task)("tied", net, (torch.zeros(2, 4),), task.calibration)
    student = tersor.trainable(task, "int8-qat", engine="torch", progress=False)
    names = [n for n, _ in student.named_parameters() if n.endswith("weight") and not n.startswith("quantizers")]
    assert len(names) == 1
    trained(student, data=batches)
    codes = [t for _, t in tersor.compress(student, report=False, progress=False).subject.network.tensors()
             if t.dtype == torch.int8 and t.numel() == 16]
    assert all(torch.equal(codes[0], other) for other in codes)


def test_cumulative_statistics_equal_eager_ones():
    net = tiny_net()
    net[1].momentum = net[4].momentum = None
    task = tiny_task(net)
    student, eager = float_student(task, captured(task)).train(), copy.deepcopy(net).train()
    for x, _ in pairs():
        assert torch.allclose(student(x), eager(x), atol=1e-5)
    found = dict(student.named_buffers())
    for layer in ("1", "4"):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            own, wanted = found[f"{layer}.{name}"], eager.get_buffer(f"{layer}.{name}")
            assert torch.allclose(own.float(), wanted.float(), atol=1e-6), name


def test_a_batch_of_one_with_batchnorm_is_refused():
    class Vectors(nn.Sequential):
        pass

    torch.manual_seed(0)
    net = Vectors(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)).eval()
    batches = [(torch.rand(8, 4), torch.randint(4, (8,))), (torch.rand(1, 4), torch.zeros(1).long())]
    task = tersor.Task("vectors", net, (torch.zeros(2, 4),), lambda: [(batches[0][0],)])
    student = tersor.trainable(task, "int8-qat", engine="torch", progress=False)
    with pytest.raises(TaskError, match=r"1: BatchNorm cannot train on a batch of one.*freeze_batchnorm: 0"):
        trained(copy.deepcopy(student), data=batches)
    trained(student, data=batches, freeze_batchnorm=0)


OPTIMIZERS = {
    "returned a list": lambda named: named,
    "returned an optimizer of .* other parameters": lambda named: torch.optim.SGD(tiny_net().parameters(), lr=0.1),
    "several gradients a step": lambda named: torch.optim.LBFGS([p for _, p in named]),
    "raised ValueError.*learning rate": lambda named: torch.optim.SGD([p for _, p in named], lr=-1),
}


@pytest.mark.parametrize("message", OPTIMIZERS)
def test_an_optimizer_that_cannot_be_used_is_named(made, message):
    with pytest.raises((TaskError, RecipeError), match=message):
        trained(copy.deepcopy(made), setting=Setting(optimizer=OPTIMIZERS[message]))


def test_what_the_users_optimizer_leaves_out_is_noted(made):
    student = copy.deepcopy(made)
    own = Setting(optimizer=lambda named: torch.optim.SGD([p for n, p in named if n.startswith("7.")], lr=0.1))
    history = trained(student, setting=own)
    assert any("leaves out 0.bias" in note for note in history.notes), history.notes
    assert torch.equal(student.get_parameter("0.weight"), made.get_parameter("0.weight"))
    assert not torch.equal(student.get_parameter("7.weight"), made.get_parameter("7.weight"))


def test_a_loss_may_change_its_batch_and_read_the_mode(made):
    batches, modes = pairs(), set()
    before = copy.deepcopy(batches)

    def loss(model, batch):
        modes.add(model.training)
        batch[0].mul_(0.5)
        return entropy(model, batch)

    trained(copy.deepcopy(made), loss, batches, re_estimate=False)
    for own, wanted in zip(batches, before, strict=True):
        assert torch.equal(own[0], wanted[0])
    assert modes == {True}


def test_a_loss_may_call_the_model_twice_with_hints(made):
    student, other = copy.deepcopy(made), copy.deepcopy(made)
    example = (torch.zeros(2, 3, 6, 6),)

    def both(model, batch):
        x, y = batch
        return (entropy(model, (x, y)) + entropy(model, (x.flip(-1), y))) / 2

    for module, loss in ((student, both), (other, entropy)):
        distillation = Distillation({"hints": Hints((("4", "4"),))}, module, tiny_net(1), example)
        trained(module, loss, distillation=distillation)
    assert not equal(student, other)


def test_a_stopped_training_leaves_no_hooks_and_no_memory(made):
    student, example = copy.deepcopy(made), (torch.zeros(2, 3, 6, 6),)
    distillation = Distillation({"hints": Hints((("4", "4"),))}, student, tiny_net(1), example)

    def stops(model, batch):
        model(batch[0])
        raise Stopped

    with pytest.raises(Stopped):
        trained(student, stops, distillation=distillation)
    assert not any(m._forward_hooks for m in student.modules())


def test_what_a_step_computed_is_freed(made):
    alive, counts = WeakSet(), []

    def loss(model, batch):
        out = model(batch[0])
        alive.add(out)
        return F.cross_entropy(out, batch[1])

    def judge(model):
        counts.append(len(alive))
        return 1.0

    trained(copy.deepcopy(made), loss, setting=Setting(judge=judge), epochs=4, patience=9, re_estimate=False)
    assert max(counts) <= 1


def test_all_parameters_frozen_is_refused(made):
    with pytest.raises(TaskError, match="all parameters are frozen"):
        trained(copy.deepcopy(made).requires_grad_(False))
