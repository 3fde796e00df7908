"""HQQ: what it minimises, and what it leaves as it was."""

import pytest
import torch

from tersor.numerics import FORMATS, QuantSpec
from tersor.solvers import LayerProblem
from tersor.solvers.hqq import Hqq
from tersor.solvers.rtn import Rtn, granules


def weights(kind: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 256, generator=draw) * 0.02
    return weight if kind == "normal" else weight * torch.randn(32, 256, generator=draw).abs()


def losses(solver, weight, spec, norm=0.7):
    """The sum of |error|^norm for each scale."""
    error = solver(LayerProblem("fc", weight, spec)).qtensor.dequantize() - weight
    return granules(error, spec).abs().double().pow(norm).sum(1)


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize(("level", "share"), [("uint4", 0.98), ("int3", 0.95), ("uint2", 0.87)])
@pytest.mark.parametrize("granularity", ["group:32", "group:64", "channel"])
def test_error_is_less_than_that_of_minimum_and_maximum(kind, level, share, granularity):
    weight, spec = weights(kind), QuantSpec(level, granularity, symmetric=False)
    ours, nearest = (losses(solver, weight, spec) for solver in (Hqq(), Rtn("minmax")))
    assert ours.sum() < share * nearest.sum()
    assert losses(Hqq(), weight, spec, 2).sum() < losses(Rtn("minmax"), weight, spec, 2).sum() or kind == "heavy"


@pytest.mark.parametrize("start", ["minmax", "mse"])
@pytest.mark.parametrize("spec", [
    QuantSpec("uint4", "group:48", symmetric=False),
    QuantSpec("int4", "channel", scale_dtype="float16"),
    QuantSpec("int3", "tensor", scale_dtype="bfloat16"),
    QuantSpec("ternary", "filters:5"),
    QuantSpec("fp8_e4m3", "channel"),
], ids=str)  # fmt: skip
def test_no_scale_is_worse_than_where_it_started(spec, start):
    weight = weights("heavy")
    before, after = (losses(solver, weight, spec) for solver in (Rtn(start), Hqq(start=start)))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()


def test_without_rounds_it_is_round_to_nearest():
    problem = LayerProblem("fc", weights("heavy"), QuantSpec("uint4", "group:32", symmetric=False))
    ours, nearest = Hqq(rounds=0)(problem).qtensor, Rtn("mse")(problem).qtensor
    assert torch.equal(ours.codes, nearest.codes)
    assert torch.equal(ours.scale, nearest.scale)


def test_a_grid_that_fits_already_stays():
    codes = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(1))
    codes[:, 0], codes[:, 1] = 0, 15
    weight = (codes - 6) * 0.25
    solution = Hqq(start="minmax")(LayerProblem("fc", weight, QuantSpec("uint4", "channel", symmetric=False)))
    assert solution.sqnr_db == float("inf")
    assert (solution.qtensor.scale == 0.25).all()


def test_the_unit_of_the_weight_does_not_matter():
    weight, spec = weights("heavy"), QuantSpec("int4", "group:32")
    one, other = (Hqq()(LayerProblem("fc", w, spec)).qtensor for w in (weight, weight * 2**10))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale * 2**10, other.scale)


def test_an_outlier_costs_the_others_less_than_by_squared_error():
    weight = weights("normal")
    weight[:, 7] = 0.4
    spec = QuantSpec("uint4", "channel", symmetric=False)
    errors = [
        (solver(LayerProblem("fc", weight, spec)).qtensor.dequantize() - weight).abs()
        for solver in (Hqq(), Rtn("mse"))
    ]
    ours, squared = ([float(e[:, 8:].mean()), float(e[:, 7].mean())] for e in errors)
    assert ours[0] < 0.8 * squared[0]
    assert ours[1] > squared[1]


@pytest.mark.parametrize("level", ["binary", "bf16"])
def test_formats_without_a_range_are_rounded_and_said_to_be(level):
    problem = LayerProblem("fc", weights("normal"), QuantSpec(FORMATS[level], "channel"))
    solution = Hqq()(problem)
    assert torch.equal(solution.qtensor.dequantize(), Rtn()(problem).qtensor.dequantize())
    assert f"{level} has no range" in solution.method
