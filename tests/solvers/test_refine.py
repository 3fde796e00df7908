"""Refinement: every step is exact, so that it never harms and stops where no single change would help."""

from dataclasses import replace

import pytest
import torch

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.solvers import Gptq, LayerProblem, Rtn
from tersor.solvers.output_error import output_error


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs of which neighbours tell much about each other."""
    return drawn(rows, columns, seed=seed) @ (0.4 * drawn(columns, columns, seed=seed + 1) + torch.eye(columns))


def problem_of(spec: QuantSpec, rows: int = 12, columns: int = 40, seed: int = 0) -> LayerProblem:
    gram = Gram.of(inputs(400, columns, seed)[None])
    return LayerProblem("fc", drawn(rows, columns, seed=seed + 2), spec, gram=gram.hessian, tokens=gram.rows)


def errors(problem: LayerProblem, values: torch.Tensor) -> torch.Tensor:
    """e·H·eᵀ of each row, in float64."""
    e = values.double() - problem.weight.double()
    return ((e @ problem.gram[0].double()) * e).sum(1)


SPECS = [
    QuantSpec("int4", "channel"),
    QuantSpec("int3", "channel", symmetric=False),
    QuantSpec("int2", "group:16"),
    QuantSpec("uint4", "group:16", symmetric=False),
    QuantSpec("int4", "group:32", scale_dtype="bfloat16"),
    QuantSpec("int8", "channel", symmetric=False, scale_dtype="float16"),
    QuantSpec("int4"),
    QuantSpec("int4", "filters:4"),
    QuantSpec("int4", "channel:1"),
    QuantSpec("ternary", "channel"),
    QuantSpec("binary", "channel"),
    QuantSpec("fp8_e4m3", "channel"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("range", ["minmax", "mse"])
def test_no_row_ever_gets_worse_and_together_they_get_better(spec, range):
    problem = problem_of(spec)
    before, *after = (
        errors(problem, Gptq(range, refine=sweeps)(problem).qtensor.dequantize()) for sweeps in (0, 1, 2, 8)
    )
    for now in after:
        assert (now <= before * (1 + 1e-4)).all()
        before = now
    start = errors(problem, Gptq(range, refine=0)(problem).qtensor.dequantize())
    assert after[-1].sum() < 0.995 * start.sum()


@pytest.mark.parametrize("columns", [40, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1], SPECS[3]], ids=str)
def test_it_stops_where_no_single_code_and_no_scale_would_help(spec, columns):
    problem = problem_of(spec, rows=4, columns=columns)
    q = Gptq("minmax", refine=60)(problem).qtensor
    least = errors(problem, q.dequantize())
    for k in range(columns):
        for step in (-1, 1):
            codes = q.codes.clone().int()
            codes[:, k] = (codes[:, k] + step).clamp(spec.low, spec.high)
            assert (errors(problem, replace(q, codes=codes.to(q.codes.dtype)).dequantize()) >= least * (1 - 1e-4)).all()
    for k in range(q.scale.shape[1]):
        for factor in (0.999, 1.001):
            scale = q.scale.clone()
            scale[:, k] *= factor
            assert (errors(problem, replace(q, scale=scale).dequantize()) >= least * (1 - 1e-4)).all()


def test_the_scale_is_that_of_least_squares():
    problem = problem_of(QuantSpec("int4", "channel"))
    q = Gptq("minmax", refine=60)(problem).qtensor
    c, h, w = q.codes.double(), problem.gram[0].double(), problem.weight.double()
    best = ((c @ h) * w).sum(1) / ((c @ h) * c).sum(1)
    assert torch.allclose(q.scale[:, 0].double(), best, rtol=1e-4)


def test_a_zero_point_moves_where_that_helps():
    # All weights near −1, but for one that the range was stretched for and whose input hardly counts.
    weight = torch.full((1, 12), -1.0) + 0.1 * drawn(1, 12)
    weight[0, 3] = 8.0
    gram = torch.eye(12)
    gram[3, 3] = 1e-6
    problem = LayerProblem("fc", weight, QuantSpec("int4", "channel", symmetric=False), gram=gram[None])
    start, moved = (Gptq("minmax", refine=sweeps)(problem) for sweeps in (0, 8))
    assert moved.qtensor.zero_point.item() != start.qtensor.zero_point.item()
    assert moved.output_error < 0.2 * start.output_error


def test_errors_are_told_beside_those_of_rounding_to_nearest():
    problem = problem_of(QuantSpec("int3", "group:16"))
    solution = Gptq(damping=0.02)(problem)
    rounded = Rtn("minmax")(problem).qtensor.dequantize()
    assert solution.rtn_error == output_error(problem.weight, rounded, problem.gram) > 2 * solution.output_error
    assert (solution.damping, solution.tokens) == (0.02, 400)
    assert "refined 2" in solution.method


def test_some_rows_of_many_stand_for_all():
    problem = problem_of(QuantSpec("int3", "channel"), rows=2000)
    found = Rtn("minmax")(problem).qtensor.dequantize()
    exact = errors(problem, found).sum() / errors(problem, 2 * problem.weight).sum()
    assert output_error(problem.weight, found, problem.gram) == pytest.approx(exact.item(), rel=0.05)


def drifted(spec: QuantSpec) -> tuple[LayerProblem, torch.Tensor, torch.Tensor]:
    """A layer behind others that changed its inputs, those inputs, and what it ought to give for them."""
    weight, before = drawn(10, 24, seed=5), inputs(500, 24)
    now = before + 0.3 * before @ drawn(24, 24, seed=6) / 5 + 0.1 * drawn(500, 24, seed=7)
    wanted = before @ weight.T
    cross = 2 * (wanted - now @ weight.T).T @ now / len(now)
    return LayerProblem("fc", weight, spec, gram=Gram.of(now[None]).hessian, cross=cross), now, wanted


def test_following_comes_near_the_least_squares_of_what_was_wanted():
    problem, now, wanted = drifted(QuantSpec("int8", "channel"))
    best = (now @ torch.linalg.lstsq(now, wanted).solution - wanted).square().sum()

    def left(solver):
        return (now @ solver(problem).qtensor.dequantize().T - wanted).square().sum()

    assert best < left(Gptq(follow=1.0, damping=1e-5)) < 1.01 * best
    assert left(Gptq(follow=1.0)) < 0.7 * left(Gptq(follow=0.5)) < 0.7 * left(Gptq(follow=0.0))


def test_following_nothing_is_the_weight_itself():
    problem, _, _ = drifted(QuantSpec("int3", "group:8"))
    alone = Gptq()(replace(problem, cross=None))
    for solution in (Gptq(follow=0.0)(problem), Gptq()(replace(problem, cross=torch.zeros(10, 24)))):
        assert torch.equal(solution.qtensor.codes, alone.qtensor.codes)
    assert "following 0.75" in Gptq()(problem).method
    assert "following" not in alone.method


def test_what_was_wanted_of_another_layer_is_refused(unchecked):
    problem, _, _ = drifted(QuantSpec("int4", "channel"))
    with pytest.raises(CalibrationError, match=r"fc: cross of shape \(24, 10\) does not fit .* must be \(10, 24\)"):
        Gptq()(replace(problem, cross=problem.cross.T))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_gpu_finds_what_the_processor_finds(spec):
    problem = problem_of(spec)
    there = Gptq()(replace(problem, weight=problem.weight.cuda(), gram=problem.gram.cuda()))
    assert there.qtensor.codes.is_cuda
    assert there.output_error == pytest.approx(Gptq()(problem).output_error, rel=0.02)
