"""ProximalOptimizer: gradients, proximal steps, masks, schedulers, AMP, accelerate, and resuming bit for bit."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tersor.errors import CheckpointError, NumericsError, RecipeError, TaskError
from tersor.numerics import QuantSpec
from tersor.training.proximal import L1, PROXIMAL
from tersor.training.proximal.admm import Admm
from tersor.training.proximal.masks import clear
from tersor.training.proximal.optimizer import ProximalOptimizer

INNER = {
    "sgd": lambda p, **o: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, **o),
    "nesterov": lambda p, **o: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, **o),
    "adam": lambda p, **o: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, amsgrad=True, **o),
    "adamw": lambda p, **o: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, **o),
    "rmsprop": lambda p, **o: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True, **o),
}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model, optimizer, steps, first=0, zero=True):
    for k in range(first, first + steps):
        if zero:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(drawn(16, 6, seed=k)), torch.arange(16) % 3).backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def equipped(model, inner, **more):
    """Everything at once: ADMM with dual steps inside, L1, and a mask."""
    optimizer = ProximalOptimizer(INNER[inner](model.named_parameters()), **more)
    optimizer.admm(model[0].weight, Admm("ternary", growth=1.3, most=0.06, every=2))
    optimizer.admm(model[2].weight, Admm({"bits": {"bits": 3}}, pull="gradient"), QuantSpec("int3", "group:4"))
    optimizer.prox(model[0].bias, L1(), 0.01)
    optimizer.mask(model[0].weight, drawn(8, 6, seed=9) > 0)
    return optimizer


# --- the inner optimizer ---


@pytest.mark.parametrize("inner", INNER)
def test_with_nothing_to_do_it_is_the_inner_optimizer(inner):
    plain, wrapped = network(), network()
    train(plain, INNER[inner](plain.parameters()), 4)
    train(wrapped, ProximalOptimizer(INNER[inner](wrapped.parameters())), 4)
    assert torch.equal(weights(plain), weights(wrapped))


def test_groups_and_state_are_those_of_the_inner_optimizer():
    model = network()
    inner = INNER["sgd"](model.named_parameters())
    optimizer = ProximalOptimizer(inner)
    train(model, optimizer, 1)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults == inner.defaults
    extra = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("extra", extra)], "lr": 0.5})
    assert [g["lr"] for g in inner.param_groups] == [0.05, 0.5]
    optimizer.mask(extra, torch.tensor([True, False]))
    assert extra.tolist() == [1, 0]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state


def test_a_closure_is_called_once_and_its_loss_returned():
    w = nn.Parameter(torch.ones(3))
    optimizer = ProximalOptimizer(torch.optim.SGD([w], lr=0.5))
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum() / 2
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    assert w.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("inner", "more", "text"), [
    (lambda p: torch.optim.LBFGS(p), {}, "LBFGS computes several gradients a step: use SGD or Adam"),
    (lambda p: torch.optim.SGD(p, lr=1.0, maximize=True), {}, "maximize=True: minimize the negative loss"),
    (lambda p: torch.optim.SGD(p, lr=1.0), {"extragradient": -1.0}, "extragradient is -1: it must be"),
])  # fmt: skip
def test_an_optimizer_that_does_not_fit_is_refused(inner, more, text):
    with pytest.raises(RecipeError, match=text):
        ProximalOptimizer(inner([nn.Parameter(torch.ones(2))]), **more)


# --- gradients ---


def test_the_step_is_that_of_the_augmented_loss():
    """One step of SGD against autograd of the loss + ρ/2‖W − G + λ‖²."""
    plain, wrapped = network(), network()
    optimizer = ProximalOptimizer(torch.optim.SGD(wrapped.parameters(), lr=0.1))
    optimizer.admm(wrapped[0].weight, Admm("binary", penalty=0.03, growth=1.0, pull="gradient"))
    train(wrapped, optimizer, 1)
    optimizer.dual_step()
    plain.load_state_dict(wrapped.state_dict())
    state = optimizer._admm[wrapped[0].weight]
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    reference.zero_grad()
    loss = nn.functional.cross_entropy(plain(drawn(16, 6, seed=1)), torch.arange(16) % 3)
    (loss + 0.15 * (plain[0].weight - state.target + state.dual).square().sum()).backward()
    reference.step()
    train(wrapped, optimizer, 1, first=1)
    assert float(state.dual.abs().max()) > 0.01
    assert torch.allclose(weights(plain), weights(wrapped), atol=1e-7)


def test_gradients_are_left_as_they_were():
    model = network()
    optimizer = equipped(model, "sgd")
    train(model, optimizer, 1)
    plain = network()
    with torch.no_grad():
        plain[0].weight.mul_(optimizer.masks[model[0].weight])
    nn.functional.cross_entropy(plain(drawn(16, 6, seed=0)), torch.arange(16) % 3).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_an_extragradient_step_takes_the_gradient_of_where_the_first_leads():
    h = drawn(5, 5) @ drawn(5, 5).T / 5
    w = nn.Parameter(drawn(5, seed=1))
    start = w.detach().clone()
    optimizer = ProximalOptimizer(torch.optim.SGD([w], lr=0.1), extragradient=2.0)
    for _ in range(2):
        w.grad = h @ w.detach()
        optimizer.step()
    assert torch.allclose(w, start - 0.1 * h @ (start - 0.2 * h @ start), atol=1e-6)
    assert optimizer.steps == 1


def test_extragradient_steps_converge_where_plain_ones_circle_outwards():
    """The field of min max x·y."""
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    lengths = []
    for extragradient in (0.0, 1.0):
        w = nn.Parameter(torch.tensor([1.0, 0.0]))
        optimizer = ProximalOptimizer(torch.optim.SGD([w], lr=0.3), extragradient=extragradient)
        for _ in range(200):
            w.grad = turn @ w.detach()
            optimizer.step()
        lengths.append(float(w.detach().norm()))
    assert lengths[0] > 100
    assert lengths[1] < 0.1


def test_a_prediction_is_not_what_is_projected():
    w = nn.Parameter(drawn(3, 4))
    start = w.detach().clone()
    optimizer = ProximalOptimizer(torch.optim.SGD([w], lr=0.5), extragradient=1.0)
    optimizer.admm(w, Admm("ternary"))
    w.grad = drawn(3, 4, seed=1)
    optimizer.step()
    assert not torch.equal(w, start)
    optimizer.dual_step()
    assert torch.equal(w, start)
    optimizer.step()
    optimizer.project()
    assert torch.equal(w, PROXIMAL["ternary"](start))
    # The projected weight is where the next step starts.
    w.grad = torch.zeros(3, 4)
    optimizer.step()
    optimizer.step()
    assert optimizer.steps == 1
    assert float((w.detach() - PROXIMAL["ternary"](start)).norm()) < 0.5 * float((start - w.detach()).norm())


# --- proximal steps ---


def test_l1_finds_the_soft_threshold_of_a_quadratic():
    target, strength = drawn(50), 0.4
    w = nn.Parameter(torch.zeros(50))
    optimizer = ProximalOptimizer(torch.optim.SGD([w], lr=0.3))
    optimizer.prox(w, L1(), strength)
    for _ in range(100):
        optimizer.zero_grad()
        ((w - target).square().sum() / 2).backward()
        optimizer.step()
    assert torch.allclose(w, L1()(target, strength), atol=1e-6)
    assert torch.equal(w == 0, target.abs() <= strength)


def test_the_strength_follows_the_learning_rate_of_the_group():
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ProximalOptimizer(torch.optim.SGD([{"params": [one]}, {"params": [other], "lr": 0.1}], lr=0.5))
    for parameter in (one, other):
        optimizer.prox(parameter, L1(), 1.0)
        parameter.grad = torch.zeros(2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    assert torch.allclose(torch.stack([one[0], other[0]]), torch.tensor([0.5, 0.9]))
    scheduler.step()
    optimizer.step()
    assert torch.allclose(torch.stack([one[0], other[0]]), torch.tensor([0.25, 0.85]))


def test_a_projection_behind_each_step_keeps_the_weight_in_the_set():
    model = network()
    optimizer = ProximalOptimizer(INNER["sgd"](model.parameters()))
    optimizer.prox(model[0].weight, PROXIMAL["binary"])
    train(model, optimizer, 3)
    size = model[0].weight.detach().abs()
    assert torch.allclose(size, size[:, :1].expand_as(size))


# --- masks ---


@pytest.mark.parametrize("inner", INNER)
def test_masked_weights_stay_zero_and_others_train(inner):
    model = network()
    optimizer = ProximalOptimizer(INNER[inner](model.parameters()))
    train(model, optimizer, 3)
    weight, keep = model[0].weight, drawn(8, 6, seed=3) > 0
    optimizer.mask(weight, keep)
    for k in range(4):
        before = weight.detach().clone()
        assert (weight[~keep] == 0).all()
        train(model, optimizer, 1, first=k)
        assert (weight[keep] != before[keep]).all()
    assert (weight[~keep] == 0).all()
    states = [v for v in optimizer.state[weight].values() if v.shape == weight.shape]
    assert states or inner == "none"
    assert all((state[~keep] == 0).all() for state in states)


@pytest.mark.parametrize("inner", INNER)
def test_another_mask_lets_weights_grow_again_from_zero_without_old_momentum(inner):
    model = network()
    optimizer = ProximalOptimizer(INNER[inner](model.parameters()))
    train(model, optimizer, 3)
    weight, keep = model[0].weight, drawn(8, 6, seed=3) > 0
    optimizer.mask(weight, keep)
    train(model, optimizer, 2)
    optimizer.mask(weight, ~keep)
    assert (weight == 0).all()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (weight == 0).all()
    train(model, optimizer, 1)
    assert (weight[keep] == 0).all()
    assert (weight[~keep] != 0).any()
    optimizer.mask(weight, None)
    train(model, optimizer, 1)
    assert (weight[keep] != 0).any()
    assert not optimizer.masks


def test_a_ternary_target_keeps_the_zeros_of_a_mask():
    model = network()
    optimizer = equipped(model, "adam")
    train(model, optimizer, 6)
    weight = model[0].weight
    keep = optimizer.masks[weight]
    codes = optimizer.project()["0.weight"].codes
    assert (codes[~keep] == 0).all()
    assert (codes[keep] != 0).any()
    assert (weight[~keep] == 0).all()


def test_a_mask_clears_target_and_dual():
    model = network()
    optimizer = ProximalOptimizer(INNER["sgd"](model.named_parameters()))
    weight = model[0].weight
    optimizer.admm(weight, Admm("ternary", every=1))
    train(model, optimizer, 3)
    keep = drawn(8, 6, seed=3) > 0
    optimizer.mask(weight, keep)
    state = optimizer._admm[weight]
    for cleared in (state.target, state.dual, state.qtensor.codes):
        assert (cleared[~keep] == 0).all()
        assert (cleared[keep] != 0).any()
    assert torch.equal(state.qtensor.dequantize(), state.target)


def test_a_mask_holds_behind_a_projection_without_zero():
    model = network()
    optimizer = ProximalOptimizer(INNER["sgd"](model.named_parameters()))
    optimizer.prox(model[0].weight, PROXIMAL["binary"])
    keep = drawn(8, 6, seed=3) > 0
    optimizer.mask(model[0].weight, keep)
    train(model, optimizer, 2)
    assert torch.equal(model[0].weight != 0, keep)


def test_a_mask_of_one_number_leaves_the_count_of_steps():
    state = {"step": torch.tensor(4.0), "exp_avg": torch.tensor(2.0)}
    clear(torch.tensor(1.0), torch.tensor(True), state)
    assert (state["step"], state["exp_avg"]) == (4, 0)


@pytest.mark.parametrize("mask_first", [True, False])
def test_binary_weights_cannot_be_masked(mask_first):
    model = network()
    optimizer = ProximalOptimizer(INNER["sgd"](model.named_parameters()))
    steps = [
        lambda: optimizer.mask(model[0].weight, torch.ones(8, 6, dtype=torch.bool)),
        lambda: optimizer.admm(model[0].weight, Admm("binary")),
    ]
    first, second = steps if mask_first else steps[::-1]
    first()
    with pytest.raises(RecipeError, match=r"^0.weight: binary weights cannot be masked"):
        second()


@pytest.mark.parametrize(("keep", "text"), [
    (torch.ones(8, 5, dtype=torch.bool), r"0.weight: a mask of torch.bool and shape \(8, 5\) does not fit"),
    (torch.ones(8, 6), r"0.weight: a mask of torch.float32 and shape \(8, 6\) does not fit"),
])  # fmt: skip
def test_a_mask_that_does_not_fit_is_refused(keep, text):
    model = network()
    with pytest.raises(TaskError, match=text):
        ProximalOptimizer(INNER["sgd"](model.named_parameters())).mask(model[0].weight, keep)


# --- bad input ---


def test_parameters_that_cannot_be_trained_are_refused():
    model = network()
    optimizer = ProximalOptimizer(INNER["sgd"](model.named_parameters()))
    with pytest.raises(TaskError, match=r"a parameter of shape \(2,\) is not the optimizer's: add it first"):
        optimizer.prox(nn.Parameter(torch.ones(2)), L1())
    model[2].weight.requires_grad_(False)
    with pytest.raises(TaskError, match=r"^2.weight is frozen: set requires_grad, or leave it out"):
        optimizer.admm(model[2].weight, Admm())
    optimizer.admm(model[0].weight, Admm())
    with pytest.raises(RecipeError, match=r"^0.weight already has a set: Ternary"):
        optimizer.admm(model[0].weight, Admm("binary"))
    optimizer.prox(model[0].bias, L1())
    with pytest.raises(RecipeError, match=r"^0.bias already has the proximal operator L1"):
        optimizer.prox(model[0].bias, L1())


def test_a_weight_that_became_nan_is_named_by_number_without_names():
    model = network()
    optimizer = ProximalOptimizer(INNER["sgd"](model.parameters()))
    optimizer.prox(model[0].bias, L1(), 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    with pytest.raises(NumericsError, match=r"^parameter 1: 8 of 8 values of a weight are NaN or infinite"):
        optimizer.step()


def test_a_parameter_without_a_gradient_stays():
    model = network()
    optimizer = ProximalOptimizer(INNER["sgd"](model.parameters()))
    optimizer.admm(model[0].weight, Admm())
    before = weights(model)
    optimizer.step()
    assert torch.equal(weights(model), before)


# --- state ---


@pytest.mark.parametrize("extragradient", [0.0, 0.5])
@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [4, 5])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(inner, steps, extragradient):
    whole, first, second = network(), network(), network(seed=1)
    one, half = (equipped(model, inner, extragradient=extragradient) for model in (whole, first))
    train(whole, one, 12)
    train(first, half, steps)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": half.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second.load_state_dict(saved["model"])
    rest = equipped(second, inner, extragradient=extragradient)
    second.load_state_dict(saved["model"])
    rest.load_state_dict(saved["optimizer"])
    train(second, rest, 12 - steps, first=steps)
    assert torch.equal(weights(whole), weights(second))
    assert rest.residuals == one.residuals
    assert rest.steps == one.steps
    for name, qtensor in one.project().items():
        assert torch.equal(qtensor.codes, rest.project()[name].codes)
        assert torch.equal(qtensor.scale, rest.project()[name].scale)


def test_a_mask_comes_back_from_the_state_alone():
    model = network()
    optimizer = equipped(model, "sgd")
    other = ProximalOptimizer(INNER["sgd"](network().parameters()))
    other.mask(list(other.param_groups[0]["params"])[1], torch.zeros(8, dtype=torch.bool))
    plain = ProximalOptimizer(INNER["sgd"](model.parameters()))
    plain.load_state_dict(other.state_dict())
    assert list(plain.masks) == [model[0].bias]
    assert optimizer.masks.keys() == {model[0].weight}


@pytest.mark.parametrize(("change", "text"), [
    (lambda s: s.pop("proximal"), "the state is of a plain optimizer: load it before wrapping"),
    (lambda s: s["proximal"]["parameters"][0].update(kind="x"), "^0.weight: the state is of x, the optimizer has"),
    (lambda s: s["proximal"]["parameters"].pop(0), "^0.weight: the state is of nothing, the optimizer has"),
    (lambda s: s["proximal"]["parameters"][0].update(keep=torch.ones(2)), r"^0.weight: its keep has shape \(2,\)"),
    (lambda s: s["proximal"]["parameters"][2]["admm"].update(dual=torch.ones(2)), r"^2.weight: its dual has shape"),
])  # fmt: skip
def test_the_state_of_another_optimizer_is_refused(change, text):
    optimizer = equipped(network(), "sgd")
    state = optimizer.state_dict()
    change(state)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(CheckpointError, match=text):
        optimizer.load_state_dict(state)
    assert str(before) == str(optimizer.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_like_the_original(copied):
    model = network()
    optimizer = equipped(model, "adam")
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    train(model, optimizer, 3)
    twin, other = copied((model, optimizer))
    for one, by in ((model, optimizer), (twin, other)):
        train(one, by, 3, first=3)
    assert torch.equal(weights(model), weights(twin))
    assert other.param_groups is other.inner.param_groups


# --- company ---


@pytest.mark.parametrize("schedule", [
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
    lambda o: torch.optim.lr_scheduler.SequentialLR(o, [
        torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [3]),
])  # fmt: skip
def test_schedulers_set_the_rate_of_the_inner_optimizer(schedule):
    plain, wrapped = network(), network()
    for model, optimizer in (
        (plain, INNER["sgd"](plain.parameters())),
        (wrapped, ProximalOptimizer(INNER["sgd"](wrapped.parameters()))),
    ):
        scheduler = schedule(optimizer)
        for k in range(6):
            train(model, optimizer, 1, first=k)
            scheduler.step()
    assert torch.equal(weights(plain), weights(wrapped))


def test_a_gradient_scaler_changes_nothing_and_skips_overflows():
    plain, scaled = network(), network()
    one, other = equipped(plain, "sgd"), equipped(scaled, "sgd")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train(plain, one, 3)
    for k in range(3):
        other.zero_grad()
        loss = nn.functional.cross_entropy(scaled(drawn(16, 6, seed=k)), torch.arange(16) % 3)
        scaler.scale(loss).backward()
        scaler.step(other)
        scaler.update()
    assert torch.equal(weights(plain), weights(scaled))
    before, steps = weights(scaled), other.steps
    scaled[0].weight.grad[0, 0] = float("inf")
    scaler.step(other)
    scaler.update()
    assert torch.equal(weights(scaled), before)
    assert other.steps == steps
    assert scaler.get_scale() == 512


def test_accelerate_takes_it_for_an_optimizer():
    accelerate = pytest.importorskip("accelerate")
    plain, prepared = network(), network()
    optimizer = equipped(plain, "adam")
    train(plain, optimizer, 4)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, ours = accelerator.prepare(prepared, equipped(prepared, "adam"))
    for k in range(8):
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(drawn(16, 6, seed=k // 2)), torch.arange(16) % 3)
            accelerator.backward(loss)
            ours.step()
            ours.zero_grad()
    assert ours.optimizer.steps == 4
    assert torch.allclose(weights(plain), weights(prepared), atol=1e-6)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def test_bfloat16_weights_train_with_a_dual_in_float32():
    model = network().bfloat16()
    optimizer = ProximalOptimizer(INNER["sgd"](model.parameters()))
    optimizer.admm(model[0].weight, Admm("ternary", penalty=0.1, every=1))
    for k in range(3):
        optimizer.zero_grad()
        model(drawn(4, 6, seed=k).bfloat16()).square().mean().backward()
        optimizer.step()
    assert optimizer._admm[model[0].weight].dual.dtype == torch.float32
    optimizer.project()
    assert len(model[0].weight[0].abs().unique()) <= 2
