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


def test_a_shift_makes_the_means_right_and_leaves_the_weight():
    x, y, old = drawn(100, 4) + 2, drawn(100, 3, seed=1), drawn(3, 4, seed=2)
    found, shift = Shift()(moments(x, y), old, shifted=True)
    assert found is old
    torch.testing.assert_close((x @ old.T + shift).mean(0), y.mean(0))


def test_a_ranking_of_scores():
    assert Ranking.of(torch.tensor([1.0, 1.0, 0.0])).order.tolist() == [2, 0, 1]
