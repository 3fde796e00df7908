"""Every entry of WEIGHT_SCORES and GROWTH keeps the same promises."""

from dataclasses import FrozenInstanceError, fields, is_dataclass
from itertools import pairwise

import pytest
import torch

from tersor.errors import RecipeError
from tersor.recipe import Prune, Train
from tersor.solvers.weights import WEIGHT_SCORES, Curvature, WeightProblem, WeightScore
from tersor.tables import made
from tersor.training.sparse import GROWTH, Growth

SHAPES = [(6, 7), (4, 3, 3, 3), (5, 1, 3)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(shape=(6, 7), block=32, seed=0):
    """A weight with everything that a score may ask for."""
    found = Curvature(frozenset({"slopes", "squares", "blocks"}), block)
    found.add("fc", drawn(40, *shape, seed=seed + 1))
    norms = drawn(*shape[1:], seed=seed + 2).abs()[None]
    return WeightProblem("fc", drawn(*shape, seed=seed), **found.of("fc"), norms=norms, seed=3)


@pytest.fixture(params=sorted(WEIGHT_SCORES))
def name(request):
    return request.param


@pytest.fixture
def score(name):
    return WEIGHT_SCORES[name]()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_loss_for_each_weight_that_is_not_negative(score, shape):
    found = score(problem(shape))
    assert found.shape == shape
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert found.unique().numel() > 1


def test_the_same_twice_and_nothing_is_changed(score):
    one = problem()
    before = [getattr(one, key).clone() for key in ("weight", "slopes", "squares", "blocks", "norms")]
    assert torch.equal(score(one), score(one))
    score.updated(one, drawn(6, 7) > 0)
    after = (getattr(one, key) for key in ("weight", "slopes", "squares", "blocks", "norms"))
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_goes_is_exactly_zero_and_keeping_all_changes_nothing(score, shape):
    one, keep = problem(shape), drawn(*shape, seed=9) > 0
    found = score.updated(one, keep)
    assert found.dtype == one.weight.dtype
    assert (found[~keep] == 0).all()
    assert torch.allclose(score.updated(one, torch.ones_like(keep)), one.weight)


def test_a_weight_that_is_zero_costs_least(name, score):
    if name == "random":
        pytest.skip("it draws")
    one = problem()
    one.weight[2] = 0
    assert score(one)[2].max() <= score(one).min() + 1e-9


def test_what_is_missing_is_said_with_the_layer(score):
    bare = WeightProblem("fc", drawn(3, 4))
    if score.needs:
        with pytest.raises(RecipeError, match=r"^fc: its \w+ are not known here"):
            score(bare)
    else:
        assert score(bare).shape == (3, 4)


def test_a_frozen_dataclass_that_says_what_it_needs(score):
    assert is_dataclass(score)
    assert isinstance(score, WeightScore)
    assert score.needs <= {"slopes", "squares", "blocks", "norms"}
    assert isinstance(score.comparable, bool)
    for field in fields(score):
        with pytest.raises(FrozenInstanceError):
            setattr(score, field.name, 0)


def test_steps_ask_for_it_by_name(name, score):
    assert Prune(target="50% weights", score=name).score == name
    if "norms" in score.needs:
        with pytest.raises(ValueError, match="reads inputs of layers, which are not kept while training"):
            Train(sparsity={"share": 0.5, "score": name})
    else:
        assert Train(sparsity={"share": 0.5, "score": name}).sparsity.score == name


@pytest.mark.parametrize("name", sorted(GROWTH))
def test_a_growth_does_not_fall_and_ends_at_all_zeros(name):
    growth = made(GROWTH, name, "schedule")
    assert isinstance(growth, Growth)
    assert is_dataclass(growth)
    values = [growth(k / 20) for k in range(21)]
    assert all(0 <= a <= b <= 1 for a, b in pairwise(values))
    assert values[-1] == 1
    assert Train(sparsity={"share": 0.5, "schedule": name}).sparsity.schedule == name
