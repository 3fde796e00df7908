"""AdaRound: against all roundings of a small layer, and never behind rounding to nearest."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.solvers import AdaRound, Geometry, Gptq, LayerProblem, Rtn
from tersor.solvers.output_error import output_error


def problem_of(rows=16, columns=40, spec="int4", granularity="channel", symmetric=True, seed=0):
    """Inputs of which neighbours tell much about each other."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=draw) * 0.4 + torch.eye(columns)
    gram = Gram.of((torch.randn(400, columns, generator=draw) @ mixed)[None]).hessian
    weight = torch.randn(rows, columns, generator=draw)
    return LayerProblem("fc", weight, QuantSpec(spec, granularity, symmetric=symmetric), gram=gram)


def row_errors(problem, qtensor):
    error = (qtensor.dequantize() - problem.weight).double()
    return ((error @ problem.gram[0].double()) * error).sum(1)


def rtn_error(problem, limits="mse"):
    return output_error(problem.weight, Rtn(limits)(problem).qtensor.dequantize(), problem.gram)


def test_close_to_the_best_of_all_roundings():
    problem = problem_of(24, 9, "int4")
    grid = Rtn("minmax")(problem).qtensor
    down = (problem.weight / grid.scale).floor().clamp(-7, 6)
    ups = torch.tensor(list(product((0.0, 1.0), repeat=9)))
    errors = (down[:, None] + ups) * grid.scale[:, None] - problem.weight[:, None]
    best = ((errors @ problem.gram[0]) * errors).sum(-1).amin(1)
    ours, nearest = (row_errors(problem, q).float() for q in (AdaRound("minmax")(problem).qtensor, grid))
    assert (ours >= best * (1 - 1e-4)).all()
    assert (ours <= best * (1 + 1e-4)).float().mean() > 0.4
    assert ours.sum() - best.sum() < 0.35 * (nearest.sum() - best.sum())


@pytest.mark.parametrize(("spec", "granularity", "symmetric"), [
    ("int4", "channel", True), ("uint4", "group:16", False), ("int3", "tensor", True), ("uint2", "channel", False),
])  # fmt: skip
def test_output_error_is_below_that_of_the_published_gptq(spec, granularity, symmetric):
    problem = problem_of(spec=spec, granularity=granularity, symmetric=symmetric)
    solution = AdaRound()(problem)
    assert solution.output_error < Gptq(refine=0)(problem).output_error < rtn_error(problem)
    assert AdaRound("minmax")(problem).output_error < 0.8 * rtn_error(problem, "minmax")
    found = output_error(problem.weight, solution.qtensor.dequantize(), problem.gram)
    assert solution.output_error == pytest.approx(found)


@pytest.mark.parametrize("spec", ["int4", "ternary", "binary", "fp8_e4m3", "bf16"])
def test_every_code_is_a_neighbour_of_its_weight(spec):
    problem = problem_of(4, 20, spec)
    ours, nearest = (solver(problem).qtensor for solver in (AdaRound(rounds=100), Rtn()))
    assert torch.equal(ours.scale, nearest.scale)
    assert not torch.equal(ours.codes.float(), nearest.codes.float())
    w, a, b = problem.weight / ours.scale, ours.codes.float(), nearest.codes.float()
    moved = a != b
    levels = torch.cat([a[moved], b[moved]])
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    assert not ((levels > low[moved][:, None]) & (levels < high[moved][:, None])).any()
    inside = moved & (w.abs() < ours.codes.float().abs().max())
    assert ((low <= w) & (w <= high))[inside].all()


def test_inputs_that_do_not_correlate_leave_nothing_to_learn():
    problem = problem_of()
    problem = replace(problem, gram=torch.diag(torch.linspace(0.5, 2, 40))[None])
    assert torch.equal(AdaRound()(problem).qtensor.codes, Rtn()(problem).qtensor.codes)


SLOW = pytest.param({"strength": 1e3, "warmup": 0.0}, marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rate": 1e3, "rounds": 3}, SLOW])
def test_no_row_is_worse_than_to_nearest(options):
    problem = problem_of(spec="int3")
    ours, nearest = (row_errors(problem, s(problem).qtensor) for s in (AdaRound(**options), Rtn()))
    assert (ours <= nearest * (1 + 1e-5)).all()


def test_groups_of_a_convolution_are_solved_apart():
    draw = torch.Generator().manual_seed(3)
    halves = [problem_of(4, 18, seed=k) for k in (1, 2)]
    weight = torch.randn(8, 2, 3, 3, generator=draw)
    whole = LayerProblem(
        "conv", weight, QuantSpec("int4", "channel"), Geometry((1, 1), (0, 0), (1, 1), groups=2),
        gram=torch.cat([p.gram for p in halves]),
    )  # fmt: skip
    found = AdaRound()(whole).qtensor.codes.flatten(1)
    for k, half in enumerate(halves):
        part = replace(half, weight=weight[4 * k : 4 * k + 4].flatten(1))
        assert torch.equal(found[4 * k : 4 * k + 4], AdaRound()(part).qtensor.codes)


def test_rows_do_not_see_each_other_nor_their_unit():
    problem = problem_of()
    scaled = replace(problem, weight=problem.weight[3:4] * 64, gram=problem.gram * 4)
    assert torch.equal(AdaRound()(scaled).qtensor.codes, AdaRound()(problem).qtensor.codes[3:4])


def test_float32_is_not_rounded_and_said_not_to_be():
    solution = AdaRound()(problem_of(spec="fp32"))
    assert solution.output_error == 0
    assert "not rounded" in solution.method


def test_without_a_gram_it_says_what_is_missing():
    with pytest.raises(CalibrationError, match=r"fc.*gram"):
        AdaRound()(replace(problem_of(), gram=None))
