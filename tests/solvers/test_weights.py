"""Scores of single weights against formulas and all choices, and the selection of what stays."""

from itertools import combinations

import pytest
import torch

from tersor.errors import CalibrationError, RecipeError
from tersor.solvers.weights import Curvature, WeightProblem
from tersor.solvers.weights.obs import Obs
from tersor.solvers.weights.plain import Magnitude, Obd
from tersor.solvers.weights.selection import check_share, kept, kept_of_each, regrown


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(samples, weights, seed=0):
    return drawn(samples, weights, seed=seed) @ (torch.eye(weights) + 0.6 * drawn(weights, weights, seed=seed + 1))


def problem_of(weight, gradients, block):
    found = Curvature(frozenset({"squares", "blocks"}), block)
    for part in gradients.split(7):
        found.add("fc", part.reshape(-1, *weight.shape))
    return WeightProblem("fc", weight, **found.of("fc"))


def loss_of(weight, found, fisher):
    error = (found - weight).reshape(-1).double()
    return float(error @ fisher @ error) / 2


def test_obd_is_half_of_the_curvature_times_the_square():
    weight, gradients = drawn(3, 4), drawn(50, 12, seed=1)
    found = Obd()(problem_of(weight, gradients, 12))
    expected = weight.square() * gradients.square().mean(0).reshape(3, 4) / 2
    assert torch.allclose(found, expected, atol=1e-6)
    fisher = torch.diag((gradients.T @ gradients / 50).diagonal()).double()
    for k in range(12):
        gone = weight.reshape(-1).clone()
        gone[k] = 0
        assert loss_of(weight, gone.reshape(3, 4), fisher) == pytest.approx(float(found.reshape(-1)[k]), rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_obs_finds_nearly_the_best_of_all_choices_and_the_optimum_of_the_rest(seed):
    """A quadratic of 10 weights, of which all sets of 5 are tried, each with the optimum of the others."""
    weight, gradients = drawn(1, 10, seed=seed + 20), correlated(80, 10, seed)
    fisher = (gradients.T @ gradients / 80).double()

    def optimum(gone):
        left = [k for k in range(10) if k not in gone]
        best = torch.zeros(10, dtype=torch.float64)
        best[left] = torch.linalg.solve(fisher[left][:, left], fisher[left] @ weight[0].double())
        return best

    tried = {gone: loss_of(weight, optimum(gone), fisher) for gone in combinations(range(10), 5)}
    score, one = Obs(block=10, damping=0.0), problem_of(weight, gradients, 10)
    mask = kept({"fc": score(one)}, 0.5, together=False)["fc"]
    found = score.updated(one, mask)
    chosen = tuple(k for k in range(10) if not mask[0, k])
    assert torch.allclose(found[0].double(), optimum(chosen), atol=1e-4)
    ranked = sorted(tried.values())
    assert tried[chosen] <= ranked[len(ranked) // 20], "within the best twentieth of all sets"
    plain = kept({"fc": Magnitude()(one)}, 0.5, together=False)["fc"]
    assert tried[chosen] < loss_of(weight, weight * plain, fisher)


def test_obs_of_the_first_weight_is_the_surgeons_formula():
    weight, gradients = drawn(1, 8, seed=4), correlated(60, 8, 4)
    fisher = (gradients.T @ gradients / 60).double()
    losses = Obs(block=8, damping=0.0)(problem_of(weight, gradients, 8))
    formula = weight[0].double().square() / torch.linalg.inv(fisher).diagonal() / 2
    assert int(losses.argmin()) == int(formula.argmin())
    assert float(losses.min()) <= float(formula.min()) * (1 + 1e-4)


@pytest.mark.parametrize("shape", [(5, 13), (4, 2, 3, 3)])
def test_blocks_of_obs_do_not_see_each_other(shape):
    """The survivors of a block are its optimum alone, whatever the padding of the last block."""
    weight = drawn(*shape)
    gradients, keep = drawn(50, weight.numel(), seed=2), drawn(*shape, seed=3) > 0
    found = Obs(block=8, damping=0.0).updated(problem_of(weight, gradients, 8), keep).reshape(-1)
    flat, mask = weight.reshape(-1).double(), keep.reshape(-1)
    for a in range(0, len(flat), 8):
        own = slice(a, a + 8)
        fisher = (gradients[:, own].T @ gradients[:, own] / 50).double()
        left = mask[own].nonzero()[:, 0]
        best = torch.linalg.solve(fisher[left][:, left], fisher[left] @ flat[own])
        assert torch.allclose(found[own][left].double(), best, atol=1e-4)


def test_gradients_in_parts_are_those_together_and_old_ones_fade():
    gradients = drawn(20, 3, 4)
    whole, parts = (Curvature(frozenset({"slopes", "squares", "blocks"}), 5) for _ in range(2))
    whole.add("fc", gradients)
    for part in gradients.split(6):
        parts.add("fc", part)
    for key, value in whole.of("fc").items():
        assert torch.allclose(value, parts.of("fc")[key], atol=1e-6), key
    parts.fade(0.5)
    parts.add("fc", torch.zeros(10, 3, 4))
    assert torch.allclose(parts.of("fc")["squares"], whole.of("fc")["squares"] / 2, atol=1e-6)
    assert Curvature(frozenset({"slopes"})).of("fc") == {}


def test_gradients_that_are_not_finite_are_refused():
    found = Curvature(frozenset({"squares"}))
    found.add("fc", torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(CalibrationError, match="fc: gradients of the loss are NaN"):
        found.of("fc")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_threshold_takes_exactly_the_share_and_never_all_of_a_layer(share):
    losses = {"a": drawn(10, 10).abs(), "b": drawn(20, 5, seed=1).abs() * 1e-6, "c": drawn(7, seed=2).abs()}
    masks = kept(losses, share, together=True)
    assert sum(int((~m).sum()) for m in masks.values()) == round(share * 207)
    assert all(m.any() for m in masks.values())
    if share == 0.5:
        assert int(masks["b"].sum()) == 1
        assert masks["b"][losses["b"] == losses["b"].max()].all()
    apart = kept(losses, share, together=False)
    assert all(int((~apart[n]).sum()) == round(share * loss.numel()) for n, loss in losses.items())


def test_what_is_gone_goes_first_and_the_lowest_go():
    losses = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    gone = {"a": torch.tensor([False, False, False, True])}
    assert kept(losses, 0.5, together=True, gone=gone)["a"].tolist() == [False, True, True, False]


def test_a_share_that_empties_a_layer_is_refused():
    with pytest.raises(RecipeError, match="of the 4 weights of b leaves none: ask for less, or leave the layer out"):
        check_share({"a": 100, "b": 4}, 0.9, together=False)
    with pytest.raises(RecipeError, match=r"99.5% of the weights cannot go.*ask for at most 98.83%"):
        check_share({"a": 900, "b": 40, "c": 2}, 0.995, together=True)


@pytest.mark.parametrize(("shape", "inputs"), [((4, 8), 1), ((3, 8, 3, 3), 1), ((8, 5), 0), ((8, 2, 3), 0)])
def test_a_pattern_keeps_the_highest_of_neighbouring_inputs(shape, inputs):
    loss = drawn(*shape).abs()
    mask = kept_of_each({"a": loss}, (2, 4), {"a": inputs})["a"]
    parts = mask.movedim(inputs, -1).reshape(-1, 4)
    values = loss.movedim(inputs, -1).reshape(-1, 4)
    assert (parts.sum(1) == 2).all()
    assert (values.masked_fill(~parts, 9).min(1).values >= values.masked_fill(parts, 0).max(1).values).all()
    with pytest.raises(RecipeError, match="a: 8 inputs are no multiple of 3, which 1:3 needs; leave this layer out"):
        kept_of_each({"a": loss}, (1, 3), {"a": inputs})


def test_as_many_weights_grow_as_are_dropped():
    weight, gradient = drawn(8, 8), drawn(8, 8, seed=1)
    keep = drawn(8, 8, seed=2) > 0.3
    found = regrown(keep, weight * keep, gradient, 0.3)
    assert int(found.sum()) == int(keep.sum())
    dropped, grown, count = keep & ~found, found & ~keep, round(0.3 * int(keep.sum()))
    assert 0 < int(grown.sum()) == int(dropped.sum()) <= count
    assert weight[dropped].abs().max() <= weight[keep & found].abs().max()
    assert gradient[grown].abs().min() >= gradient[~keep & ~found].abs().max()
    assert torch.equal(regrown(keep, weight, gradient, 0.0), keep)
    everything = torch.ones(3, dtype=torch.bool)
    assert regrown(everything, torch.ones(3), torch.ones(3), 0.5).all()
