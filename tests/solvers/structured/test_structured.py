"""OBS by structure against least squares, and repairs against the closed form."""

import itertools

import pytest
import torch

from tersor.errors import RecipeError
from tersor.solvers.structured import SCORES, GroupProblem, Moments, Ranking, Reader
from tersor.solvers.structured.obs import StructuredObs, Surgeon
from tersor.solvers.structured.repairs import Ridge, Shift


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def reader(outputs=5, atoms=6, each=3, seed=0):
    x = drawn(200, atoms * each, seed=seed) @ drawn(atoms * each, atoms * each, seed=seed + 1)
    x = x - x.mean(0)
    columns = torch.arange(atoms * each).reshape(atoms, each)
    rows = drawn(outputs, seed=seed + 3).abs() + 0.1
    return Reader(drawn(outputs, atoms * each, seed=seed + 2), columns, x.T @ x / len(x), rows), x


def least_squares(one, x, gone):
    """Half the weighted error when the other columns make up for it as well as they can."""
    left = [c for k, cs in enumerate(one.columns.tolist()) if k not in gone for c in cs]
    wanted = x @ one.weight.T
    found = torch.linalg.lstsq(x[:, left], wanted).solution if left else torch.zeros(0, len(one.weight))
    error = ((x[:, left] @ found.double() - wanted) if left else wanted).square().mean(0)
    return float((error * one.rows).sum() / 2)


def test_obs_removes_what_least_squares_would_step_by_step():
    one, x = reader()
    problem = GroupProblem("a", (one.weight.T[one.columns].flatten(1),), readers=(one,))
    ranking = StructuredObs(damping=1e-12)(problem)
    gone = []
    for atom, loss in zip(ranking.order.tolist(), ranking.loss.tolist(), strict=True):
        best = min((least_squares(one, x, {*gone, k}), k) for k in range(6) if k not in gone)
        assert best[1] == atom
        assert loss == pytest.approx(best[0], rel=1e-4)
        gone.append(atom)


def test_obs_beats_magnitude_and_comes_near_the_best_of_all():
    for seed in range(4):
        one, x = reader(seed=seed)
        problem = GroupProblem("a", (one.weight.T[one.columns].flatten(1).float(),), readers=(one,))
        best = min(least_squares(one, x, set(c)) for c in itertools.combinations(range(6), 3))
        losses = {n: least_squares(one, x, set(SCORES[n]()(problem).order[:3].tolist())) for n in ("obs", "magnitude")}
        assert best <= losses["obs"] + 1e-9 <= losses["magnitude"] + 2e-9
        assert losses["obs"] <= 1.5 * best


def test_several_readers_are_added():
    (one, x), (two, y) = reader(seed=1), reader(outputs=3, seed=5)
    ranking = StructuredObs(damping=1e-12)(GroupProblem("a", (), readers=(one, two)))
    first = int(ranking.order[0])
    costs = [least_squares(one, x, {k}) + least_squares(two, y, {k}) for k in range(6)]
    assert first == min(range(6), key=costs.__getitem__)
    assert float(ranking.loss[0]) == pytest.approx(min(costs), rel=1e-4)


def test_constant_and_dead_inputs_cost_nothing_and_break_nothing():
    one, _ = reader()
    gram = one.gram.clone()
    gram[one.columns[2]] = 0
    gram[:, one.columns[2]] = 0
    problem = GroupProblem("a", (), readers=(Reader(one.weight, one.columns, gram, one.rows),))
    ranking = StructuredObs()(problem)
    assert int(ranking.order[0]) == 2
    assert ranking.loss.isfinite().all()
    dead = GroupProblem("a", (), readers=(Reader(one.weight, one.columns, torch.zeros_like(gram)),))
    assert StructuredObs()(dead).loss.isfinite().all()


def test_a_surgeon_leaves_nothing_of_what_went():
    one, _ = reader()
    surgeon = Surgeon(one, one.gram, 1e-3, "a")
    surgeon.remove(4)
    assert not surgeon.weight[:, one.columns[4]].any()
    assert surgeon.costs()[4] == 0


def test_what_a_score_lacks_is_named():
    with pytest.raises(RecipeError, match="the channels of a have no BatchNorm"):
        SCORES["batchnorm"]()(GroupProblem("a", (torch.ones(2, 3),)))
    with pytest.raises(RecipeError, match="no layers that read them"):
        SCORES["obs"]()(GroupProblem("a", (torch.ones(2, 3),)))


def moments(x, y):
    found = Moments(x.shape[1], y.shape[1])
    for part in zip(x.split(30), y.split(30), strict=True):
        found.add(*part)
    return found


@pytest.mark.parametrize("shifted", [False, True])
def test_ridge_is_the_closed_form(shifted):
    x, y, old = drawn(100, 4) + 2, drawn(100, 3, seed=1), drawn(3, 4, seed=2)
    found, shift = Ridge(0.1)(moments(x, y), old, shifted=shifted)
    a, b = (x - x.mean(0), y - y.mean(0)) if shifted else (x, y)
    pull = 0.1 * float((a.T @ a / 100).diagonal().mean())
    stacked = torch.cat((a / 10, pull**0.5 * torch.eye(4).double()))
    wanted = torch.linalg.lstsq(stacked, torch.cat((b / 10, pull**0.5 * old.T))).solution.T
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(shift, y.mean(0) - wanted @ x.mean(0) if shifted else torch.zeros(3).double())


def fresh_error(weight, shift, truth, shifted):
    """On rows that no fit has seen."""
    x = drawn(4000, truth.shape[1], seed=7) + 2
    y = x @ truth.T + 2 * drawn(4000, len(truth), seed=8) + (5 if shifted else 0)
    return float((y - x @ weight.double().T - shift.double()).square().mean())


@pytest.mark.parametrize("shifted", [False, True])
def test_few_rows_are_not_learned_by_heart(shifted):
    truth = drawn(3, 60, seed=3)
    old = truth + 0.1 * drawn(3, 60, seed=4)
    x = drawn(120, 60, seed=5) + 2
    y = x @ truth.T + 2 * drawn(120, 3, seed=6) + (5 if shifted else 0)
    few = Moments(60, 3)
    for part in zip(x.split(12), y.split(12), strict=True):
        few.add(*part)
    assert few.held.rows == 24
    plain = Moments(60, 3)
    plain.add(x, y)  # one batch: nothing is held out
    assert plain.held is None
    errors = [fresh_error(*Ridge()(m, old, shifted=shifted), truth, shifted) for m in (few, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_with_many_rows_a_ridge_has_the_strength_that_was_asked_for():
    x, y, old = drawn(400, 4), drawn(400, 3, seed=1), drawn(3, 4, seed=2)
    whole = Moments(4, 3)
    for part in zip(x.split(40), y.split(40), strict=True):
        whole.add(*part)
    again = Moments(4, 3)
    again.add(x, y)
    for one, other in zip(*(Ridge()(m, old, shifted=True) for m in (whole, again)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_moments_without_the_held_out_rows_are_those_of_the_others():
    x, y = drawn(80, 5) + 100, drawn(80, 2, seed=1)
    whole, rest = Moments(5, 2), Moments(5, 2)
    for number, part in enumerate(zip(x.split(10), y.split(10), strict=True), 1):
        whole.add(*part)
        if number % 4:
            rest.add(*part)
    for one, other in zip(whole.without(whole.held).centred(), rest.centred(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    some = whole.of(torch.tensor([3, 1]))
    torch.testing.assert_close(some.centred()[2], whole.centred()[2][[3, 1]][:, [3, 1]])
    weight, shift = drawn(2, 5, seed=2), drawn(2, 1, seed=3)[:, 0]
    held = torch.cat((x[30:40], x[70:80])), torch.cat((y[30:40], y[70:80]))

    def error(weight, shift):
        return float((held[1] - held[0] @ weight.T - shift).square().sum(1).mean())

    apart = whole.held.error(weight, shift) - whole.held.error(0 * weight, 0 * shift)
    assert apart == pytest.approx(error(weight, shift) - error(0 * weight, 0 * shift), rel=1e-8)


def test_a_shift_makes_the_means_right_and_leaves_the_weight():
    x, y, old = drawn(100, 4) + 2, drawn(100, 3, seed=1), drawn(3, 4, seed=2)
    found, shift = Shift()(moments(x, y), old, shifted=True)
    assert found is old
    torch.testing.assert_close((x @ old.T + shift).mean(0), y.mean(0))


def test_a_ranking_of_scores():
    assert Ranking.of(torch.tensor([1.0, 1.0, 0.0])).order.tolist() == [2, 0, 1]
