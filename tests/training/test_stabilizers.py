"""Weights that oscillate, and what stops them."""

import copy
import math
import re
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.engines import engine
from tersor.errors import CheckpointError
from tersor.network.trainable.result import codes_of
from tersor.numerics import QuantSpec
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.graph.training.student import student_of
from tersor.pipeline.progress import Stages
from tersor.recipe import Quantization, Recipe, Train
from tersor.training.loop import Setting, fit
from tersor.training.objective import Objective
from tersor.training.quantizers import Start, quantizer
from tersor.training.stabilizers.base import Stabilizer, integers, latent
from tersor.training.stabilizers.dampen import Dampen
from tersor.training.stabilizers.freeze import Freeze
from tersor.training.stabilizers.none import Nothing
from tersor.training.student import LatentWeight, quantizers_in
from tests.training.students import drawn

STEP = 0.25
# The best value of each weight, between two codes, but for the fourth.
BEST = torch.tensor([[1.3, -0.7, 2.5, 3.0, -2.1, 0.4]]) * STEP


FREEZE = Freeze(first=0.2, last=0.05, rate=0.02)


class Regression(nn.Module):
    """The paper's toy: each weight starts at its best value, where only the fourth can stay."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(BEST.clone())
        start = Start("w", QuantSpec("int4"), torch.tensor(STEP), torch.tensor(0.0), self.weight.detach())
        self.quantizer = quantizer("lsq", start)
        self.quantizer.log_scale.requires_grad_(False)

    def latent_weights(self):
        yield LatentWeight("weight", self.quantizer, self.weight)

    def loss(self) -> Tensor:
        return (self.quantizer(self.weight) - BEST).square().sum()

    def codes(self) -> Tensor:
        return self.quantizer.qtensor(self.weight).codes.int()


@cache
def trained(entry, steps=400, rate=0.1):
    """The student, its stabilizer, and the codes of every step."""
    student = Regression()
    stabilizer = entry(student)
    optimizer = torch.optim.SGD([student.weight], lr=rate)
    codes = []
    for k in range(steps):
        optimizer.zero_grad()
        (student.loss() + stabilizer.loss(k / steps)).backward()
        optimizer.step()
        stabilizer.step(k / steps)
        codes.append(student.codes())
    return student, stabilizer, torch.cat(codes)


def flips(codes):
    """Changes of each weight's code in the last quarter of the steps."""
    return (codes.diff(dim=0)[-len(codes) // 4 :] != 0).sum(0)


def test_weights_between_two_codes_oscillate():
    found = flips(trained(Nothing())[2])
    assert (found[[0, 1, 2, 4, 5]] > 3).all()
    assert found[3] == 0


@pytest.mark.parametrize(
    "entry", [Dampen(strength=2.0), FREEZE], ids=lambda e: type(e).__name__
)
def test_it_stops_them_next_to_their_best_value(entry):
    student, _, codes = trained(entry)
    assert flips(codes).sum() == 0
    assert ((student.codes() * STEP - BEST).abs() <= STEP).all()


def test_a_weight_is_frozen_at_the_code_where_it_was_most_often():
    student, stabilizer, codes = trained(FREEZE)
    state = stabilizer.state_dict()
    frozen = state["weight.frozen"][0]
    assert frozen.tolist() == [True, True, True, False, True, True]
    wanted = (BEST / STEP).round()[0].int()
    assert (student.codes()[0] == wanted)[[0, 1, 3, 4, 5]].all()
    assert torch.equal(student.weight[0, frozen], (student.codes()[0] * STEP)[frozen])
    assert stabilizer.note() == "5 of 6 weights oscillated and were frozen"
    # Once frozen, a code never changes.
    after = [int((codes[:, k] != codes[-1, k]).nonzero().max()) for k in frozen.nonzero().flatten().tolist()]
    assert max(after) < len(codes) - 2


def reference(codes, rate, thresholds):
    """Algorithm 1 of arXiv 2203.11086 for one weight, frozen at a turn, in plain Python: at which step and code."""
    before, direction, frequency, mean = codes[0], 0, 0.0, float(codes[0])
    for step, code in enumerate(codes[1:], 1):
        change = (code > before) - (code < before)
        turned = change * direction < 0
        frequency = (1 - rate) * frequency + rate * turned
        if turned and frequency > thresholds[step]:
            return step, min((before, code), key=lambda one: abs(one - mean))
        direction, before = change or direction, code
        mean = (1 - rate) * mean + rate * code
    return None, None


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_algorithm_of_the_paper(seed):
    """Latent weights that walk at random: the first freezing of each is that of a plain loop."""
    options, student, steps = Freeze(first=0.3, last=0.1, rate=0.05), Regression(), 60
    stabilizer = options(student)
    walk = (drawn(steps, 6, seed=seed) * 0.5 * STEP).cumsum(0) * 0.3 + STEP / 2
    seen = (walk / STEP).round().int()
    frozen_at: dict[int, int] = {}
    for k in range(steps):
        with torch.no_grad():
            student.weight.copy_(walk[k][None])
        stabilizer.step(k / steps)
        for column in stabilizer.state_dict()["weight.frozen"][0].nonzero().flatten().tolist():
            frozen_at.setdefault(column, k)
    thresholds = [0.1 + 0.2 * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
    for column in range(6):
        step, code = reference(seen[:, column].tolist(), 0.05, thresholds)
        assert frozen_at.get(column) == step
        if step is not None:
            assert student.weight[0, column] == code * STEP
            assert stabilizer.state_dict()["weight.codes"][0, column] == code


def test_after_a_drift_a_weight_is_frozen_between_the_codes_where_it_turns():
    """The moving average is still far behind."""
    student = Regression()
    stabilizer = Freeze(first=0.01, last=0.01, rate=0.02)(student)
    for code in (0, 1, 2, 3, 4, 5, 6, 5):
        with torch.no_grad():
            student.weight.fill_(code * STEP)
        stabilizer.step(0.0)
    state = stabilizer.state_dict()
    assert state["weight.frozen"].all()
    assert (state["weight.mean"] < 1).all()
    assert (student.codes() == 5).all()


def test_a_frozen_weight_follows_its_scale():
    student, stabilizer, _ = copy.deepcopy(trained(FREEZE))
    before = student.codes()
    with torch.no_grad():
        student.quantizer.log_scale.add_(0.5)
    stabilizer.step(1.0)
    frozen = stabilizer.state_dict()["weight.frozen"]
    assert torch.equal(student.codes()[frozen], before[frozen])
    assert torch.allclose(student.weight[frozen], before[frozen] * STEP * math.exp(0.5))


def test_the_dampening_loss_and_its_gradient():
    """The distance to the quantized value, which is a constant; nothing beyond the range."""
    student = Regression()
    with torch.no_grad():
        student.weight.copy_(torch.tensor([[0.3, -0.4, 1.6, 9.0, -9.0, 0.0]]) * STEP)
    dampening = Dampen(strength=3.0)(student)
    loss = dampening.loss(0.5)
    distance = torch.tensor([[0.3, -0.4, -0.4, 0.0, 0.0, 0.0]]) * STEP
    assert loss.item() == pytest.approx(1.5 * float(distance.square().sum()))
    (gradient,) = torch.autograd.grad(loss, student.weight)
    assert torch.allclose(gradient, 3.0 * distance, atol=1e-6)
    assert dampening.loss(0.0).item() == 0
    assert dampening.loss(1.0).item() == pytest.approx(3 * float(distance.square().sum()))


def test_a_state_of_another_weight_is_refused():
    stabilizer = trained(Freeze(), 10)[1]
    with pytest.raises(CheckpointError, match=r"weight\.codes has shape \(2,\), but the weight has \(1, 6\)"):
        stabilizer.load_state_dict({"weight.codes": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"but the weight is not watched: resume with the same recipe"):
        stabilizer.load_state_dict({"other.codes": torch.zeros(1, 6)})


def test_the_base_does_nothing():
    nothing = Stabilizer()
    nothing.step(0.5)
    nothing.load_state_dict({})
    assert (nothing.loss(0.5), nothing.state_dict(), nothing.note()) == (0.0, {}, "")


# --- weights in front of a BatchNorm ---


class Normed(nn.Module):
    """Convolutions with BatchNorm, plain and transposed, and a layer without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.last(self.up(torch.relu(self.norm(self.conv(x))))))
        return self.head(x.mean((2, 3)))


def student_with(granularity, *, symmetric):
    model = Normed().eval()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(drawn(*p.shape, seed=k))
        for k, norm in enumerate((model.norm, model.last)):
            norm.weight[0].abs_().neg_()
            norm.running_var.copy_(drawn(4, seed=30 + k).exp())
    task = tersor.Task("normed", model, (torch.zeros(1, 2, 6, 6),), lambda: [(drawn(8, 2, 6, 6, seed=9),)])
    weights = Quantization(format="int4", granularity=granularity, symmetric=symmetric, range="mse")
    activations = Quantization(format="uint4", symmetric=False)
    recipe = Recipe(weights=weights, activations=activations, bias_correction=False)
    stages = Stages(False)
    subject = start(task, recipe, GraphHost(engine("torch").policy()), stages)
    solved = recipe.steps[0](subject, task, stages).details
    return student_of(task, solved, {}), solved


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_what_is_watched_is_what_is_deployed(granularity, symmetric):
    student, _ = student_with(granularity, symmetric=symmetric)
    weights = {w.name: w for w in student.latent_weights()}
    assert list(weights) == ["conv.weight", "up.weight", "head.weight"]
    read = {}
    for weight in weights.values():
        weight.quantizer.register_forward_pre_hook(lambda m, args, n=weight.name: read.update({n: args[0]}))
    student.train()(drawn(4, 2, 6, 6))
    # The values before the pass, in which the running statistics moved.
    assert all(torch.allclose(latent(weight), read[name]) for name, weight in weights.items())
    for weight, deployed in zip(student.latent_weights(), codes_of(student).values(), strict=True):
        found, own = integers(weight.quantizer, latent(weight).detach())[0], deployed.codes - deployed.zero_point
        assert torch.equal(found.abs(), own.abs()) if symmetric else torch.equal(found, own)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_frozen_weights_stay_on_their_deployed_codes(granularity, symmetric):
    student, _ = student_with(granularity, symmetric=symmetric)
    stabilizer = Freeze()(student.train())
    stabilizer.step(0.0)
    for name, value in stabilizer.state_dict().items():
        if name.endswith("frozen"):
            value.fill_(True)
    before = [q.codes.clone() for q in codes_of(student).values()]
    optimizer = torch.optim.SGD([w.parameter for w in student.latent_weights()], lr=0.1)
    for k in range(3):
        student(drawn(4, 2, 6, 6, seed=k)).square().sum().backward()
        optimizer.step()
        stabilizer.step(0.5)
    after = [q.codes for q in codes_of(student).values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_of_a_value_is_that_of_calibration(symmetric):
    student, _ = student_with("channel", symmetric=symmetric)
    read = {}

    def record(module, args, result):
        error = (result - args[0]).square().sum() / args[0].square().sum()
        read[module] = float(error.detach())

    quantizers = quantizers_in(student)
    for q in quantizers:
        q.register_forward_hook(record)
    student.eval()
    # The values of the first operator are the calibration data; those behind are quantized before.
    with torch.no_grad():
        student(drawn(8, 2, 6, 6, seed=9))
    assert quantizers[0].error == pytest.approx(read[quantizers[0]], rel=0.05)
    for q in quantizers:
        assert float(q.error) == pytest.approx(read[q], rel=0.5)
        if q.is_weight:
            assert float(q.error) == pytest.approx(read[q], rel=1e-3)


# --- in the loop ---


def fitted(folder, stop_behind=None):
    """A student trained for two epochs of four steps, with what the loop says; stopped behind a step, and resumed."""
    oscillation = {"freeze": {"first": 0.4, "last": 0.1, "rate": 0.5}}
    step = Train(epochs=2, rate=0.5, optimizer="sgd", distill="none", oscillation=oscillation, schedule={
        "progressive": {"bits": (8,), "shares": (0.25,)}
    })  # fmt: skip
    student, _ = student_with("channel", symmetric=False)

    def loss(model, batch):
        return (model(batch) - batch.mean((1, 2, 3))[:, None]).square().mean()

    def report(epoch, done, total, loss):
        if done == stop_behind:
            raise KeyboardInterrupt

    batches = [drawn(8, 2, 6, 6, seed=k) for k in range(4)]
    setting = Setting(seed=1, folder=folder, report=report)
    return student, fit(student, Objective(loss, None), lambda: batches, step, setting)


@pytest.mark.slow
def test_a_training_that_was_stopped_resumes_bit_for_bit_with_schedule_and_stabilizer(tmp_path):
    whole, history = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "part", stop_behind=6)
    part, resumed = fitted(tmp_path / "part")
    assert history.notes == resumed.notes
    assert re.fullmatch(r"[1-9]\d* of 116 weights oscillated and were frozen", history.notes[0])
    for (name, one), other in zip(whole.state_dict().items(), part.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
