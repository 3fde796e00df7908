"""ADMM: its updates by the formulas, and small quadratic problems whose best solution brute force knows."""

from itertools import pairwise, product

import pytest
import torch
from torch import nn

from tersor.errors import NumericsError, RecipeError
from tersor.numerics import QuantSpec
from tersor.training.proximal import PROXIMAL, Bits
from tersor.training.proximal.admm import Admm, AdmmState
from tersor.training.proximal.optimizer import ProximalOptimizer

CODES = {"binary": [-1, 1], "ternary": [-1, 0, 1]}


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Quadratics:
    """½(w − c)ᵀH(w − c) for each row w, with correlated H; the largest eigenvalue is 1."""

    def __init__(self, rows=48, size=7, seed=0):
        mixing = torch.eye(size) + 0.4 * drawn(rows, size, size, seed=seed + 1)
        factor = drawn(rows, 2 * size, size, seed=seed) @ mixing
        h = factor.transpose(1, 2) @ factor
        self.h = h / torch.linalg.eigvalsh(h)[:, -1, None, None]
        self.c = drawn(rows, size, seed=seed + 2)

    def __call__(self, w):
        d = w - self.c
        return ((d[:, None] @ self.h).squeeze(1) * d).sum(1) / 2

    def best(self, codes):
        """The least value of each row over α ≥ 0 and all vectors b of codes: α = bᵀHc / bᵀHb."""
        vectors = torch.tensor(list(product(codes, repeat=self.c.shape[1])), dtype=torch.float64)
        hc = (self.h @ self.c[:, :, None]).squeeze(2)
        gain = (hc @ vectors.T).clamp(min=0).square()
        power = torch.einsum("kn,rnm,km->rk", vectors, self.h, vectors).clamp(min=1e-12)
        return ((self.c * hc).sum(1) - (gain / power).max(1).values) / 2


def solved(problem, options, rounds=45, steps=10, lr=0.5, **more):
    """The projected weight and the optimizer."""
    w = nn.Parameter(problem.c.clone())
    optimizer = ProximalOptimizer(torch.optim.SGD([w], lr=lr), **more)
    optimizer.admm(w, options)
    for _ in range(rounds):
        for _ in range(steps):
            optimizer.zero_grad()
            problem(w).sum().backward()
            optimizer.step()
        optimizer.dual_step()
    optimizer.project()
    return w.detach(), optimizer


@pytest.mark.parametrize("pull", ["gradient", "proximal"])
@pytest.mark.parametrize("name", CODES)
def test_it_is_far_better_than_projecting_once_and_often_the_best_there_is(name, pull):
    problem = Quadratics()
    found, optimizer = solved(problem, Admm(name, penalty=0.01, growth=1.1, most=1.0, pull=pull))
    once, ours, best = problem(PROXIMAL[name](problem.c)), problem(found), problem.best(CODES[name])
    assert (ours >= best - 1e-6).all()
    assert (ours < once - 1e-6).float().mean() > 0.9
    assert (ours < best + 1e-6).float().mean() > 0.3
    assert ours.mean() - best.mean() < 0.4 * (once.mean() - best.mean())
    (history,) = optimizer.residuals.values()
    assert history[0].primal > 0.2
    assert history[-1].primal < 0.01
    assert history[-1].dual < 0.01


def test_with_extragradient_steps_too():
    problem = Quadratics(rows=16)
    options = Admm("binary", penalty=0.01, growth=1.1, most=0.5, pull="gradient")
    found, optimizer = solved(problem, options, rounds=40, steps=20, extragradient=1.0)
    assert optimizer.steps == 40 * 10
    assert (problem(found) < problem(PROXIMAL["binary"](problem.c)) - 1e-6).float().mean() > 0.9


def test_without_a_loss_the_weight_goes_to_its_projection():
    w = nn.Parameter(drawn(4, 9))
    start = w.detach().clone()
    optimizer = ProximalOptimizer(torch.optim.SGD([w], lr=0.5))
    optimizer.admm(w, Admm("ternary", penalty=1.0))
    for _ in range(40):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert torch.allclose(w, PROXIMAL["ternary"](start), atol=1e-6)


def test_updates_follow_the_formulas():
    start, ternary = drawn(3, 5), PROXIMAL["ternary"]
    state = AdmmState(start, Admm("ternary", penalty=0.5, growth=2.0, most=1.5, pull="gradient"))
    assert torch.equal(state.target, ternary(start))
    dual, penalty = torch.zeros_like(start), 0.5
    for step in range(4):
        w = drawn(3, 5, seed=step + 1)
        gradient = drawn(3, 5, seed=step + 11)
        wanted = gradient + penalty * (w - state.target + dual)
        assert torch.allclose(state.augmented(gradient, w), wanted)
        before = state.target
        residual = state.update(w, step)
        target = ternary(w + dual)
        assert torch.equal(state.target, target)
        assert (residual.step, residual.penalty) == (step, penalty)
        assert residual.primal == pytest.approx(float((w - target).norm() / w.norm()))
        assert residual.dual == pytest.approx(float((target - before).norm() / w.norm()))
        dual = dual + w - target
        # ρλ stays what it is when ρ grows.
        grown = min(2 * penalty, 1.5)
        dual, penalty = dual * penalty / grown, grown
        assert torch.allclose(state.dual, dual)
        assert state.penalty == penalty
    assert penalty == 1.5
    assert len(state.history) == 4


@pytest.mark.parametrize("lr", [0.1, 10.0, 1e4])
def test_the_proximal_pull_minimizes_its_cost_for_any_step(lr):
    w, state = drawn(2, 6), AdmmState(drawn(2, 6, seed=1), Admm("ternary", penalty=0.7, pull="proximal"))
    state.dual = drawn(2, 6, seed=2)
    v = state.pulled(w, lr).requires_grad_()
    cost = ((v - w).square() / 2 + lr * 0.7 / 2 * (v - state.target + state.dual).square()).sum()
    assert float(torch.autograd.grad(cost, v)[0].abs().max()) < 1e-9 * (1 + lr)
    assert torch.equal(state.augmented(w, w), w)


def test_the_penalty_reaches_its_limit_over_the_updates():
    state = AdmmState(drawn(2, 3), Admm(penalty=0.1, most=7.0).over(12))
    for step in range(12):
        assert state.penalty < 7.0
        state.update(drawn(2, 3), step)
    assert state.penalty == pytest.approx(7.0)
    assert Admm(penalty=9.0, most=1.0).over(5).growth == 1.0


def test_a_penalty_above_its_limit_stays():
    state = AdmmState(drawn(2, 3), Admm(penalty=20.0, growth=2.0, most=10.0))
    state.update(drawn(2, 3), 1)
    assert state.penalty == 20.0


def test_the_target_is_in_the_set_at_all_times_and_is_what_is_projected():
    w = nn.Parameter(drawn(4, 8, dtype=torch.float32))
    optimizer = ProximalOptimizer(torch.optim.SGD([("fc.weight", w)], lr=0.1))
    optimizer.admm(w, Admm({"bits": {"bits": 3}}), QuantSpec("int3", "group:4", scale_dtype="float16"))
    for k in range(3):
        w.grad = drawn(4, 8, seed=k, dtype=torch.float32)
        optimizer.step()
    codes = optimizer.project()
    q = codes["fc.weight"]
    assert str(q.spec) == "int3 per group:4 symmetric float16 scales"
    assert torch.equal(w, q.dequantize())
    again = Bits(3).qtensor(w, q.spec)
    assert torch.equal(again.codes, q.codes)
    assert torch.allclose(again.scale, q.scale, rtol=1e-6)
    # Nothing was trained since: G stays.
    assert torch.equal(optimizer.project()["fc.weight"].codes, q.codes)
    assert len(optimizer.residuals["fc.weight"]) == 1


def test_a_dual_step_comes_every_so_many_steps():
    w = nn.Parameter(drawn(4, 8))
    optimizer = ProximalOptimizer(torch.optim.SGD([w], lr=0.1))
    optimizer.admm(w, Admm(every=3))
    for k in range(10):
        w.grad = drawn(4, 8, seed=k)
        optimizer.step()
    (history,) = optimizer.residuals.values()
    assert [residual.step for residual in history] == [3, 6, 9]
    assert all(a.step < b.step for a, b in pairwise(history))


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_the_penalty_is_in_units_of_the_first_learning_rate(lr):
    w = nn.Parameter(drawn(4, 8))
    optimizer = ProximalOptimizer(torch.optim.AdamW([w], lr=lr))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1)
    optimizer.admm(w, Admm(penalty=0.03, growth=1e9, most=5.0))
    residual = optimizer.dual_step()["parameter 0"]
    assert residual.penalty * lr == pytest.approx(0.03)
    assert optimizer.dual_step()["parameter 0"].penalty * lr == pytest.approx(5.0)
    assert scheduler.get_last_lr() == pytest.approx([0.1 * lr])


def test_a_learning_rate_of_zero_is_refused():
    w = nn.Parameter(drawn(4, 8))
    optimizer = ProximalOptimizer(torch.optim.SGD([("fc.weight", w)], lr=0.0))
    with pytest.raises(RecipeError, match=r"^fc.weight: the learning rate is 0: a penalty"):
        optimizer.admm(w, Admm())


def test_what_is_no_quantized_set_is_refused():
    with pytest.raises(RecipeError, match="l1 is no quantized set for ADMM: use one of binary, ternary"):
        Admm("l1")
    with pytest.raises(RecipeError, match=r"unknown set 'ternery' \(did you mean 'ternary'\?\)"):
        Admm("ternery")
    with pytest.raises(RecipeError, match="'granularity' is 3"):
        Admm({"ternary": {"granularity": 3}})


@pytest.mark.parametrize("moment", ["start", "update"])
def test_a_weight_that_is_not_finite_is_named(moment):
    w = nn.Parameter(drawn(2, 3))
    optimizer = ProximalOptimizer(torch.optim.SGD([("stem.weight", w)], lr=0.1))
    if moment == "update":
        optimizer.admm(w, Admm())
    with torch.no_grad():
        w[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"^stem.weight: 1 of 6 values of a weight are NaN"):
        optimizer.dual_step() if moment == "update" else optimizer.admm(w, Admm())
