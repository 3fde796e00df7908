"""Bits of a whole network, against every choice there is; what curves and records say."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import RecipeError
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.solvers import SOLVERS, Gptq, Hqq, LayerProblem, Obq, Rtn, record
from tersor.solvers.budget import allocate_bits
from tersor.solvers.output_error import output_error

LEVELS = ["int2", "int3", "int4", "int8"]


def problem_of(name="fc", rows=8, columns=24, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=draw) * 0.4 + torch.eye(columns)
    gram = Gram.of((torch.randn(200, columns, generator=draw) @ mixed)[None]).hessian
    weight = torch.randn(rows, columns, generator=draw)
    return LayerProblem(name, weight, QuantSpec("int8", "channel"), gram=gram)


def layers():
    return {f"l{k}": problem_of(f"l{k}", 4 + 4 * k, 12 + 8 * k, k) for k in range(4)}


def best_of_all(curves, weights, budget):
    """The least weighted error of every choice that fits."""
    totals = []
    for choice in product(range(len(LEVELS)), repeat=len(curves)):
        taken = [curves[n][k] for n, k in zip(curves, choice, strict=True)]
        if sum(cost for cost, _ in taken) <= budget:
            totals.append(sum(w * error for w, (_, error) in zip(weights, taken, strict=True)))
    return min(totals)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 20, 0.1, 3)])
def test_allocation_against_every_choice(weights):
    problems = layers()
    curves = {name: Rtn().curve(p, LEVELS) for name, p in problems.items()}
    sensitivity = dict(zip(curves, weights, strict=True))
    least, most = (sum(curve[k][0] for curve in curves.values()) for k in (0, -1))
    excess = []
    for part in range(11):
        budget = least + (most - least) * part / 10
        chosen = allocate_bits(curves, LEVELS, budget, sensitivity)
        taken = {n: curves[n][LEVELS.index(level)] for n, level in chosen.items()}
        assert sum(cost for cost, _ in taken.values()) <= budget
        found = sum(sensitivity[n] * error for n, (_, error) in taken.items())
        excess.append(found / best_of_all(curves, weights, budget))
    assert min(excess) >= 1 - 1e-9
    assert excess[0] == pytest.approx(1)
    assert excess[-1] == pytest.approx(1)
    # Only where a step of a hull ends is it exact; with so few layers the steps between are large.
    assert sum(e < 1 + 1e-9 for e in excess) >= 6
    assert sum(excess) / len(excess) < 1.08


def test_each_budget_at_which_a_step_ends_is_met_exactly():
    curves = {"a": [(2, 8.0), (3, 4.0), (4, 2.0), (8, 0.0)], "b": [(2, 3.0), (3, 1.5), (4, 0.75), (8, 0.0)]}
    for budget in (4, 5, 6, 7, 8, 12, 16):
        chosen = allocate_bits(curves, LEVELS, budget)
        found = sum(curves[n][LEVELS.index(level)][1] for n, level in chosen.items())
        assert found == best_of_all(curves, (1, 1), budget)


@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=4), st.integers(0, 3), st.floats(1.5, 50))
def test_a_layer_that_matters_more_never_gets_less(weights, which, factor):
    curves = {f"l{k}": [(b, (k + 1) * 4.0**-b) for b in (2, 3, 4, 8)] for k in range(4)}
    sensitivity = dict(zip(curves, weights, strict=True))
    more = sensitivity | {f"l{which}": weights[which] * factor}
    before, after = (
        LEVELS.index(allocate_bits(curves, LEVELS, 14, s)[f"l{which}"]) for s in (sensitivity, more)
    )
    assert after >= before


@pytest.mark.parametrize(("changes", "text"), [
    ({"levels": ["int2", "int4"]}, "layer a: its curve has 4 points for the 2 levels int2, int4"),
    ({"sensitivity": {"a": 1.0}}, "layer b: it has a curve or a sensitivity, but not both"),
    ({"sensitivity": {"a": 1.0, "b": float("nan")}}, "layer b: its sensitivity is nan"),
    ({"sensitivity": {"a": -1.0, "b": 1.0}}, "layer a: its sensitivity is -1.0"),
    ({"budget": 3}, "budget 3 is below 4"),
])  # fmt: skip
def test_what_cannot_be_allocated_is_refused(changes, text):
    curve = [(2, 4.0), (3, 2.0), (4, 1.0), (8, 0.0)]
    with pytest.raises(RecipeError, match=text):
        allocate_bits(**({"curves": {"a": curve, "b": curve}, "levels": LEVELS, "budget": 8} | changes))


@pytest.mark.parametrize("name", ["rtn", "gptq", "obq", "hqq", pytest.param("adaround", marks=pytest.mark.slow)])
def test_a_curve_tells_the_output_error_where_inputs_are_known(name):
    problem, solver = problem_of(), SOLVERS[name]()
    for level, (_, error) in zip(LEVELS, solver.curve(problem, LEVELS), strict=True):
        after = solver(replace(problem, spec=QuantSpec(level, "channel"))).qtensor.dequantize()
        assert error == pytest.approx(output_error(problem.weight, after, problem.gram))


@pytest.mark.parametrize("solver", [Rtn(), Hqq()])
def test_a_curve_tells_the_weight_error_without(solver):
    problem = replace(problem_of(), gram=None)
    ((_, error),) = solver.curve(problem, ["int3"])
    after = solver(replace(problem, spec=QuantSpec("int3", "channel"))).qtensor.dequantize()
    assert error == pytest.approx(float((after - problem.weight).square().sum() / problem.weight.square().sum()))


def test_a_record_tells_the_method_and_rounding_beside_it():
    problem = replace(problem_of(), spec=QuantSpec("int3", "channel"))
    solution = Obq(damping=0.02)(problem)
    line = record(problem, solution, tokens=200)
    assert (line.name, line.method, line.tokens, line.damping) == ("fc", solution.method, 200, 0.02)
    assert line.bits == 8 * 24 * 3 + 8 * 32
    assert line.output_error == solution.output_error
    nearest = record(problem, Rtn("minmax")(problem))
    assert nearest.output_error == nearest.rtn_error == line.rtn_error
    assert nearest.share == 1
    assert line.share == pytest.approx(line.output_error / nearest.output_error)
    assert line.share < 0.8
    assert nearest.damping is nearest.tokens is None


def test_a_record_without_inputs_claims_no_output_error():
    problem = replace(problem_of(), gram=None)
    line = record(problem, Rtn()(problem))
    assert line.output_error is line.rtn_error is line.share is None
    assert line.sqnr_db > 30


def test_a_record_of_gptq_compares_with_rounding():
    problem = replace(problem_of(rows=16, columns=64), spec=QuantSpec("int3", "channel"))
    line = record(problem, Gptq()(problem))
    assert line.share < 0.8
