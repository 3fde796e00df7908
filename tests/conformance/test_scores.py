"""Every entry of SCORES and REPAIRS keeps the same promises."""

from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
import torch

from tersor.recipe import Prune
from tersor.solvers.structured import REPAIRS, SCORES, GroupProblem, Moments, Reader

ATOMS, EACH = 6, 2


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(order=None, seed=0):
    """A group with everything that a score may ask for, its atoms in another order if that is given."""
    order = torch.arange(ATOMS) if order is None else order
    x = drawn(50, ATOMS * EACH, seed=seed)
    columns = torch.arange(ATOMS * EACH).reshape(ATOMS, EACH)[order]
    written = drawn(ATOMS, 7, seed=seed + 1)[order]
    gradients = drawn(ATOMS, 7, seed=seed + 2)[order]
    zeros = drawn(ATOMS, seed=seed + 3).sigmoid()[order]
    scales = drawn(ATOMS, 1, seed=seed + 4)[order]
    reader = Reader(drawn(5, ATOMS * EACH, seed=seed + 5), columns, x.T @ x / 50, drawn(5, seed=seed + 6).abs())
    changes = drawn(4, ATOMS, seed=seed + 7)[:, order]
    return GroupProblem("layer", (written,), scales, (reader,), (gradients.square(),), changes, zeros, seed=3)


@pytest.fixture(params=sorted(SCORES))
def name(request):
    return request.param


@pytest.fixture
def score(name):
    return SCORES[name]()


def test_an_order_of_all_atoms_whose_loss_does_not_fall(score):
    found = score(problem())
    assert sorted(found.order.tolist()) == list(range(ATOMS))
    assert found.loss.shape == (ATOMS,)
    assert found.loss.isfinite().all()
    assert (found.loss.diff() >= 0).all()
    assert found.loss[0] >= 0


def test_the_same_twice_and_nothing_is_changed(score):
    one = problem()
    before = [t.clone() for t in (*one.written, one.scales, one.readers[0].weight, one.readers[0].gram)]
    first, second = score(one), score(one)
    assert torch.equal(first.order, second.order)
    assert torch.equal(first.loss, second.loss)
    after = (*one.written, one.scales, one.readers[0].weight, one.readers[0].gram)
    assert all(map(torch.equal, before, after))


def test_the_numbers_of_atoms_mean_nothing(name, score):
    if name == "random":
        pytest.skip("it draws by number")
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert order[score(problem(order)).order].tolist() == score(problem()).order.tolist()


def test_a_frozen_dataclass_that_says_what_it_needs(score):
    assert is_dataclass(score)
    assert score.needs <= {"inputs", "outputs", "gradients"}
    assert isinstance(score.comparable, bool)
    for field in fields(score):
        with pytest.raises(FrozenInstanceError):
            setattr(score, field.name, 0)


def test_a_step_asks_for_it_by_name(name):
    assert Prune(score=name).score == name


@pytest.mark.parametrize("name", sorted(REPAIRS))
@pytest.mark.parametrize("shifted", [False, True])
def test_a_repair_does_not_make_the_error_larger(name, shifted):
    x, old = drawn(200, 8) + 1, drawn(4, 8, seed=1)
    y = x @ (old + 0.3 * drawn(4, 8, seed=2)).T + 2
    moments = Moments(8, 4)
    moments.add(x, y)
    found, shift = REPAIRS[name]()(moments, old, shifted=shifted)
    assert found.shape == old.shape
    assert found.dtype == old.dtype
    assert (x @ found.T + shift - y).square().mean() <= (x @ old.T - y).square().mean() + 1e-6
    if not shifted:
        assert not shift.any()
    assert Prune(repair=name).repair == name
