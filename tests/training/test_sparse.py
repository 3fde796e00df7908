"""Zeros while training: when they come, that they stay, that they move, and that a stopped training goes on alike."""

import copy
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from training.tiny_tasks import Stopped, entropy, equal, pairs, student_of, trained

import tersor
from tersor.errors import RecipeError
from tersor.recipe import Train
from tersor.training.optimizers import cosine
from tersor.training.proximal.optimizer import ProximalOptimizer
from tersor.training.roles import Roles
from tersor.training.setting import Setting
from tersor.training.sparse import Sparsifier

WEIGHTS = {"0.weight": 1, "3.weight": 1, "7.weight": 1}
ROLES = Roles(WEIGHTS)


@pytest.fixture(scope="module")
def made():
    return student_of()


def shuffled():
    """Batches in a new order, with noise of all three generators."""
    data = pairs()
    random.shuffle(data)
    for x, y in data:
        yield x + 0.1 * torch.rand(len(x), 1, 1, 1) + 0.1 * float(np.random.rand()), y


def judge(model):
    return float(entropy(model, pairs(1, seed=7)[0]))


def share(student, names=tuple(WEIGHTS)):
    own = dict(student.named_parameters())
    return sum(int((own[n] == 0).sum()) for n in names) / sum(own[n].numel() for n in names)


class Net(nn.Module):
    """A student without a network."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.a, self.b = nn.Linear(20, 30), nn.Linear(30, 8)

    def forward(self, x):
        return self.b(self.a(x).relu())


NET = Roles({"a.weight": 1, "b.weight": 1})


def stepping(total, net=None, seen=None, momentum=0.9, roles=NET, **options):
    """A Net trained by hand, with what ``seen`` says behind each step."""
    net = net or Net()
    inner = torch.optim.SGD(net.named_parameters(), lr=0.05, momentum=momentum, weight_decay=0.01)
    optimizer = ProximalOptimizer(inner)
    sparse = Sparsifier(optimizer, net, roles, Train(sparsity=options).sparsity, total, max(1, total // 4))
    found = []
    for k in range(total):
        generator = torch.Generator().manual_seed(k)
        x, y = torch.randn(16, 20, generator=generator), torch.randint(8, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        sparse.step(k + 1)
        found.append(share(net, tuple(NET.weights)) if seen is None else seen(net, optimizer))
    sparse.finish()
    return net, found, optimizer


def test_the_share_follows_zhu_and_gupta():
    """s_t = s_f·(1 − (1 − (t − t_0)/(n·Δt))³), at every update, and constant between two."""
    _, found, _ = stepping(40, share=0.9, **{"from": 0.1}, until=0.6, every=5)
    start, end = 4, 24
    for step, value in enumerate(found, 1):
        last = min(end, start + 5 * ((step - start) // 5)) if step < end else end
        expected = 0.0 if step < start else 0.9 * (1 - (1 - (last - start) / (end - start)) ** 3)
        assert value == pytest.approx(expected, abs=1.1 / 840), step


def test_masks_stay_to_the_end_and_what_is_masked_never_comes_back():
    _, found, _ = stepping(30, seen=lambda net, _: net.a.weight.detach() == 0, share=0.8, until=0.5, every=3)
    for before, after in pairwise(found):
        assert (after | ~before).all()
    assert torch.equal(found[15], found[-1])
    assert found[-1].any()


@pytest.mark.parametrize("score", ["magnitude", "obd", "obs", "taylor", "random"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_every_score_and_scope_reach_the_share(score, scope):
    net, _, optimizer = stepping(12, share=0.75, score=score, scope=scope, every=2)
    assert share(net, tuple(NET.weights)) == pytest.approx(0.75, abs=1e-3)
    if scope == "layer":
        assert share(net, ("b.weight",)) == pytest.approx(0.75, abs=1e-2)
    for parameter, mask in optimizer.masks.items():
        assert not parameter[~mask].any()
        assert not optimizer.state[parameter]["momentum_buffer"][~mask].any()


def test_obs_moves_the_survivors():
    """Without any gradient step of its own: with a rate of 0 only the update of the score changes weights."""
    before, after = {}, {}
    for score, found in (("obd", before), ("obs", after)):
        net = Net()
        optimizer = ProximalOptimizer(torch.optim.SGD(net.named_parameters(), lr=0.0))
        options = Train(sparsity={"share": 0.5, "score": score, "schedule": "once", "until": 1.0}).sparsity
        sparse = Sparsifier(optimizer, net, NET, options, 1, 1)
        nn.functional.cross_entropy(net(torch.ones(4, 20)), torch.arange(4)).backward()
        optimizer.step()
        sparse.step(1)
        found["moved"] = ((net.a.weight != Net().a.weight) & (net.a.weight != 0)).any().item()
    assert (before["moved"], after["moved"]) == (False, True)


def test_rigl_moves_zeros_and_keeps_the_share_of_every_layer():
    def seen(net, optimizer):
        return [p.detach() != 0 for p in (net.a.weight, net.b.weight)], [m.clone() for m in optimizer.masks.values()]

    _, found, _ = stepping(
        40, seen=seen, share=0.8, schedule="once", regrow=0.4, every=4, until=0.8, scope="layer", momentum=0.0
    )
    masks = [m for _, m in found]
    for one in masks:
        assert [round(float(m.float().mean()), 2) for m in one] == [0.2, 0.2]
    moved = [int((a[0] != b[0]).sum()) for a, b in pairwise(masks)]
    # Updates behind steps 1, 5, 9 … 29, and 32, which exchanges nothing.
    updates = [moved[k] for k in range(3, 31, 4)]
    assert all(updates)
    assert updates[0] > updates[-1], "fewer and fewer move"
    assert not any(moved[28:])
    assert sum(moved) == sum(updates), "between two updates nothing moves"
    # Every one of 120 weights of the first layer that is kept: two for each that was exchanged.
    assert updates[0] <= 2 * round(0.4 / 2 * (1 + np.cos(np.pi * 5 / 32)) * 120)


def test_a_pattern_comes_step_by_step():
    def seen(net, _):
        return (net.a.weight.reshape(-1, 4) != 0).sum(1).unique().tolist()

    net, found, _ = stepping(
        20, seen=seen, roles=Roles({"a.weight": 1}), pattern="1:4", schedule="linear", until=0.8, every=2
    )
    assert found[0] == [4]
    assert [3] in found
    assert [2] in found
    assert found[-1] == [1]
    assert (net.b.weight != 0).all()


@pytest.mark.parametrize("point", [True, 1])
def test_a_rewound_training_has_the_early_weights_and_the_last_masks(point):
    weights = []

    def seen(net, optimizer):
        weights.append((net.a.weight.detach().clone(), net.a.bias.detach().clone()))
        return optimizer.masks[net.a.weight].clone()

    start = Net()
    _, masks, optimizer = stepping(16, seen=seen, share=0.6, until=0.5, every=2, rewind=point)
    early, bias = (start.a.weight, start.a.bias) if point is True else weights[3]
    last = masks[7]
    expected = torch.where(last, early.detach(), 0.0)
    # Step 8 completes the zeros; weights that were zero at the early point for the mask of then are not.
    assert torch.equal(weights[7][0], expected)
    assert torch.equal(weights[7][1], bias)
    assert not torch.equal(weights[8][0], weights[7][0]), "and goes on from there"
    assert torch.equal(masks[-1], last)
    assert len(optimizer.state) == 4, "momentum began anew"


def test_the_learning_rate_begins_anew_behind_a_rewind():
    factor = cosine(10, 0.2, 4)
    assert [round(factor(k), 2) for k in (0, 2, 4, 5, 7)] == [1.0, 0.75, 0.5, 1.0, 0.85]


COURSES = {
    "cubic": {"share": 0.8, "every": 1},
    "obs": {"share": 0.8, "every": 2, "score": "obs"},
    "rigl": {"share": 0.8, "schedule": "once", "regrow": 0.5, "every": 1, "until": 1.0, "score": "random"},
    "rewound": {"share": 0.8, "every": 1, "rewind": 1, "until": 0.7},
}


@pytest.mark.parametrize("course", sorted(COURSES))
@pytest.mark.parametrize("at", [2, 5, 8])
def test_a_resumed_training_is_bit_identical(made, tmp_path, course, at):
    options = {"epochs": 3, "optimizer": "adamw", "average": 0.8, "sparsity": COURSES[course]}
    straight = copy.deepcopy(made)
    whole = trained(straight, entropy, shuffled, None, Setting(judge=judge, roles=ROLES), **options)
    assert share(straight) == pytest.approx(0.8, abs=2e-3)
    calls = []

    def stops(model, batch):
        calls.append(1)
        if model.training and len(calls) == at:
            raise Stopped
        return entropy(model, batch)

    setting = Setting(judge=judge, roles=ROLES, folder=tmp_path)
    with pytest.raises(Stopped):
        trained(copy.deepcopy(made), stops, shuffled, None, setting, **options)
    student = copy.deepcopy(made)
    history = trained(student, entropy, shuffled, None, setting, **options)
    assert equal(student, straight)
    assert [(e.loss, e.held_out) for e in history.epochs] == [(e.loss, e.held_out) for e in whole.epochs]


def test_averaged_weights_have_the_zeros_too(made):
    student = copy.deepcopy(made)
    trained(student, setting=Setting(roles=ROLES), epochs=4, average=0.9, sparsity={"share": 0.7, "every": 1})
    assert share(student) == pytest.approx(0.7, abs=2e-3)


def test_patience_returns_no_epoch_with_fewer_zeros(made):
    student, values = copy.deepcopy(made), iter([9.0, 1.0, 1.5, 3.0, 2.5, 2.8, 2.9])
    history = trained(
        student, setting=Setting(judge=lambda _: next(values), roles=ROLES), epochs=6, patience=2, re_estimate=False,
        sparsity={"share": 0.7, "until": 0.5, "every": 1},
    )  # fmt: skip
    assert share(student) == pytest.approx(0.7, abs=2e-3)
    assert [e.number for e in history.epochs] == [1, 2, 3, 4, 5, 6]
    assert history.notes[-1] == "epoch 4 was the best on held-out data, and is returned"


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_training_that_is_too_short_reaches_the_share_all_the_same(made, epochs):
    student = copy.deepcopy(made)
    trained(student, setting=Setting(roles=ROLES), epochs=epochs, sparsity={"share": 0.7, "score": "obd"})
    assert share(student) == pytest.approx(0.7, abs=2e-3)


def test_zeros_of_an_earlier_step_stay_without_new_ones(made):
    student = copy.deepcopy(made)
    own = dict(student.named_parameters())
    with torch.no_grad():
        own["3.weight"][::2] = 0
    trained(student, setting=Setting(roles=Roles(WEIGHTS, frozenset({"3.weight"}))), epochs=2)
    assert not own["3.weight"][::2].any()
    assert own["3.weight"][1::2].all()
    assert own["0.weight"].all()


def test_an_oscillating_weight_that_is_frozen_does_not_bring_back_what_is_masked(made):
    student = copy.deepcopy(made)
    stabilizer = {"freeze": {"first": 0.01, "last": 0.001, "rate": 1.0, "bits": 8}}
    trained(
        student, setting=Setting(roles=ROLES), epochs=4, rate=0.05, oscillation=stabilizer,
        sparsity={"share": 0.8, "every": 1},
    )  # fmt: skip
    assert share(student) == pytest.approx(0.8, abs=2e-3)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 0.5, "pattern": "2:4"}, "give either `share`, such as 0.9, or `pattern`"),
        ({}, "give either `share`, such as 0.9, or `pattern`"),
        ({"pattern": "4:2"}, "the pattern '4:2' is none such as 2:4"),
        ({"pattern": "2:4", "regrow": 0.3}, "`regrow` moves zeros anywhere in a layer"),
        ({"share": 0.5, "from": 0.7, "until": 0.5}, "let `from` be less"),
        ({"share": 1.0}, "less than 1"),
        ({"share": 0.5, "score": "obc"}, "unknown score 'obc'"),
        ({"share": 0.5, "schedule": "cube"}, "did you mean 'cubic'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Train(sparsity=options)


@pytest.mark.parametrize("other", [{"oscillation": "freeze"}, {"proximal": "admm"}])
def test_what_remembers_the_weights_is_not_rewound(other):
    with pytest.raises(ValueError, match="takes weights back, but"):
        Train(sparsity={"share": 0.5, "rewind": True}, **other)


def test_a_point_behind_the_last_zeros_is_refused(made):
    with pytest.raises(RecipeError, match=r"cannot be rewound to step 9 of 9.*complete at 70%"):
        trained(
            copy.deepcopy(made), setting=Setting(roles=ROLES), epochs=3, sparsity={"share": 0.5, "rewind": 3}
        )  # fmt: skip


def test_nothing_that_can_become_zero_is_refused(made):
    student = copy.deepcopy(made)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in WEIGHTS)
    with pytest.raises(RecipeError, match=r"no weight of a convolution, linear or recurrent layer is trained here"):
        trained(student, setting=Setting(roles=ROLES), sparsity=0.5)


@pytest.mark.parametrize("proximal", [None, {"admm": {"set": "binary"}}])
def test_codes_without_a_zero_are_refused(proximal):
    steps = {"steps": ({"quantize": {"weights": {"format": "binary"}}}, {"train": {"proximal": proximal}})}
    student = student_of(steps=tersor.Recipe.model_validate(steps))
    with pytest.raises(RecipeError, match=r"^0.weight: binary weights cannot be masked"):
        trained(student, setting=Setting(roles=ROLES), sparsity=0.5, proximal=proximal)


def test_a_loop_of_ones_own_does_not_make_zeros_silently():
    steps = tersor.Recipe(steps=[{"quantize": "int8-static"}, {"train": {"sparsity": 0.5}}])
    with pytest.raises(RecipeError, match="which a loop of your own does itself: leave `sparsity` out"):
        student_of(steps=steps)


def test_a_pattern_that_does_not_divide_is_refused(made):
    with pytest.raises(RecipeError, match=r"^0: 3 inputs are no multiple of 4, which 2:4 needs; leave this layer out"):
        trained(copy.deepcopy(made), setting=Setting(roles=ROLES), sparsity="2:4")
