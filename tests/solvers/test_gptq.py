"""GPTQ: against the published loop in float64, and against what it is for."""

from dataclasses import replace

import pytest
import torch

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.solvers import Geometry, Gptq, LayerProblem, Rtn
from tersor.solvers.cholesky import inverse_factor
from tersor.solvers.output_error import output_error
from tersor.solvers.patches import patches


def correlated(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs of which neighbours tell much about each other."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=draw) * 0.4 + torch.eye(columns)
    return torch.randn(rows, columns, generator=draw) @ mixed


def problem_of(rows=24, columns=40, spec="int4", granularity="channel", symmetric=True, seed=0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 7))
    gram = Gram.of(correlated(400, columns, seed)[None]).hessian
    return LayerProblem("fc", weight, QuantSpec(spec, granularity, symmetric=symmetric), gram=gram)


def published(problem: LayerProblem, order: bool, damping: float) -> torch.Tensor:
    """The loop of the paper in float64: H⁻¹ by inversion, its upper Cholesky factor, a column at a time."""
    w, h = problem.weight.double().clone(), problem.gram[0].double().clone()
    grid = Rtn("minmax")(problem).qtensor
    s, z = grid.scale.double().expand_as(w).clone(), grid.zero_point.double().expand_as(w).clone()
    columns = h.diagonal().argsort(descending=True, stable=True) if order else torch.arange(len(h))
    h = h[columns][:, columns]
    h.diagonal().add_(damping * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w, s, z = w[:, columns], s[:, columns], z[:, columns]
    codes = torch.empty_like(w)
    for k in range(w.shape[1]):
        codes[:, k] = ((w[:, k] / s[:, k]).round() + z[:, k]).clamp(problem.spec.low, problem.spec.high)
        error = (w[:, k] - (codes[:, k] - z[:, k]) * s[:, k]) / upper[k, k]
        w[:, k:] -= error[:, None] * upper[k, k:]
    found = torch.empty_like(codes)
    found[:, columns] = codes
    return found


@pytest.mark.parametrize("order", ["activation", "natural"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [40, 300])
def test_the_codes_are_those_of_the_published_loop(order, symmetric, columns):
    problem = problem_of(columns=columns, spec="int4" if symmetric else "uint4", symmetric=symmetric)
    ours = Gptq("minmax", order, refine=0)(problem).qtensor.codes.double()
    theirs = published(problem, order == "activation", 0.01)
    # A weight within float32 of a tie may go the other way, and those behind it then differ too.
    assert (ours != theirs).double().mean() < 0.02


@pytest.mark.parametrize("spec", ["int4", "int3", "int2"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:8"])
@pytest.mark.parametrize("range", ["minmax", "mse"])
def test_worse_weights_and_better_outputs_than_rounding(spec, granularity, range):
    problem = problem_of(spec=spec, granularity=granularity)
    ours, rounded = Gptq(range)(problem), Rtn(range)(problem)
    assert ours.sqnr_db < rounded.sqnr_db
    assert ours.output_error < 0.8 * output_error(problem.weight, rounded.qtensor.dequantize(), problem.gram)


def test_every_group_of_a_convolution_has_a_hessian_of_its_own():
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    sample = torch.randn(6, 6, 9, 9, generator=torch.Generator().manual_seed(2))
    geometry = Geometry((1, 1), (1, 1), (1, 1), groups=2)
    problem = LayerProblem("conv", weight, QuantSpec("int4", "channel"), geometry, sample)
    problem = replace(problem, gram=Gram.of(patches(problem, 10_000)).hessian)
    whole = Gptq()(problem).qtensor.codes
    for k in (0, 1):
        alone = LayerProblem("half", weight[4 * k :][:4], problem.spec, gram=problem.gram[k : k + 1])
        assert torch.equal(Gptq()(alone).qtensor.codes, whole[4 * k :][:4])


def test_a_column_that_is_never_used_becomes_zero_and_disturbs_nothing():
    problem = problem_of()
    gram = problem.gram.clone()
    gram[0, 5], gram[0, :, 5] = 0, 0
    after = Gptq()(replace(problem, gram=gram)).qtensor.dequantize()
    assert (after[:, 5] == 0).all()
    kept = [k for k in range(40) if k != 5]
    rest = replace(problem, weight=problem.weight[:, kept], gram=gram[:, kept][:, :, kept])
    grid = Gptq("minmax")(replace(problem, gram=gram)).output_error
    assert grid == pytest.approx(Gptq("minmax")(rest).output_error, rel=0.3)


def test_damping_is_raised_until_the_factor_exists_and_told():
    rank_one = torch.ones(40, 40)[None]
    told = Gptq(damping=0.0)(replace(problem_of(), gram=rank_one)).method
    assert "damping 0.0001" in told
    with pytest.raises(CalibrationError, match=r"layer fc: its Hessian is not positive definite even with damping 10"):
        Gptq()(replace(problem_of(), gram=-torch.eye(40)[None] * 100))


def test_the_factor_is_that_of_the_inverse():
    hessian = Gram.of(correlated(300, 60)[None]).hessian[0].double()
    upper, damping = inverse_factor(hessian, 0.0, "fc")
    assert damping == 0
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper, torch.linalg.inv(hessian), rtol=1e-8)


def test_a_gram_matrix_of_another_layer_is_refused():
    with pytest.raises(CalibrationError, match=r"layer fc: Gram matrices of shape \(1, 39, 39\) do not fit"):
        Gptq()(replace(problem_of(), gram=torch.eye(39)[None]))
    with pytest.raises(CalibrationError, match="needs gram, which was not collected"):
        Gptq()(replace(problem_of(), gram=None))


def test_batches_of_a_gram_matrix_merge_and_padding_does_not_count():
    x = correlated(90, 12)[None]
    whole, merged = Gram.of(x), Gram.of(x[:, :20]).merged(Gram.of(x[:, 20:]))
    assert merged.rows == whole.rows == 90
    assert torch.allclose(merged.hessian, whole.hessian, rtol=1e-4, atol=1e-5)
    mask = torch.arange(90) < 33
    assert torch.equal(Gram.of(x, mask).hessian, Gram.of(x[:, :33]).hessian)
    assert Gram.of(x.bfloat16()).hessian.dtype == torch.float32
    with pytest.raises(CalibrationError, match="1 of the layer's inputs are NaN or infinite"):
        Gram.of(torch.full((1, 1, 1), torch.inf))


def test_an_error_that_no_input_sees_is_not_below_zero():
    draw = torch.Generator().manual_seed(0)
    weight, errors = torch.randn(16, 64, generator=draw), []
    for _ in range(20):  # in float32 half of these sums come out negative
        x = torch.randn(1, 64, generator=draw)
        off = torch.randn(16, 64, generator=draw) * 0.1
        off -= (off @ x.T) @ x / x.square().sum()
        errors.append(output_error(weight, weight + off, (2 * x.T @ x)[None]))
    assert all(0 <= error < 1e-8 for error in errors)
