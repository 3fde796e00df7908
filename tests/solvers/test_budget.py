"""The budget of a network: against every possible choice, where there are few."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import RecipeError
from tersor.solvers.budget import allocate

POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50)), min_size=1, max_size=5)


def total(curves, chosen, part):
    return sum(curves[name][k][part] for name, k in chosen.items())


def best(curves, budget):
    choices = (dict(zip(curves, ks, strict=True)) for ks in product(*(range(len(c)) for c in curves.values())))
    return min(total(curves, c, 1) for c in choices if total(curves, c, 0) <= budget)


@given(st.dictionaries(st.sampled_from("abcd"), POINTS, min_size=1), st.integers(0, 40))
def test_within_budget_and_no_further_from_the_best_than_one_step(curves, extra):
    budget = sum(min(c)[0] for c in curves.values()) + extra
    chosen = allocate(curves, budget)
    assert total(curves, chosen, 0) <= budget
    # The Lagrangian bound: what one step between two corners of a hull gains at most.
    largest = max(max(e for _, e in c) - min(e for _, e in c) for c in curves.values())
    assert best(curves, budget) <= total(curves, chosen, 1) <= best(curves, budget) + largest


@given(st.dictionaries(st.sampled_from("abcd"), POINTS, min_size=1))
def test_no_point_beats_what_was_taken_at_its_own_cost(curves):
    budget = sum(max(c)[0] for c in curves.values())
    chosen = allocate(curves, budget)
    assert total(curves, chosen, 1) == sum(min(e for _, e in c) for c in curves.values())
    again = allocate(curves, total(curves, chosen, 0))
    assert total(curves, again, 1) == total(curves, chosen, 1), "the budget that was used is enough"


def test_the_corners_of_the_hulls_are_exact():
    curves = {"a": [(0, 100.0), (1, 40.0), (2, 20.0)], "b": [(0, 30.0), (1, 10.0), (2, 5.0)], "c": [(0, 3.0), (2, 0.0)]}
    for budget in range(7):
        assert total(curves, allocate(curves, budget), 1) == best(curves, budget)


def test_the_order_of_a_curve_and_points_that_no_one_wants_do_not_matter():
    assert allocate({"a": [(8, 0.0), (4, 1.0), (6, 5.0), (2, 9.0)]}, 7) == {"a": 1}
    # Off the hull, but the only thing that fits.
    assert allocate({"a": [(0, 10.0), (4, 9.0), (8, 0.0)]}, 5) == {"a": 1}


def test_bad_input():
    with pytest.raises(RecipeError, match="the budget 3 is below 4, the least that these 2 layers cost"):
        allocate({"a": [(2, 1.0)], "b": [(2, 0.5), (3, 0.1)]}, 3)
    for curve in ([], [(1, float("nan"))], [(float("inf"), 1.0)]):
        with pytest.raises(RecipeError, match="layer fc: its curve"):
            allocate({"fc": curve}, 3)
    assert allocate({}, 1) == {}
