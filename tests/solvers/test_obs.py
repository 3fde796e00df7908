"""ExactOBS, OBQ and the other solvers of sparsity, against brute force on layers that are small enough for it."""

from dataclasses import replace

import pytest
import torch

from tersor.errors import CalibrationError, RecipeError
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.solvers import Geometry, Gptq, LayerProblem, Rtn
from tersor.solvers.obq import Obq
from tersor.solvers.obs import counts_of_rows, eliminate, inverse, without
from tersor.solvers.patches import patches
from tersor.solvers.prune import PRUNERS, ExactObs, Magnitude, SparseGpt
from tersor.solvers.sparsity import Sparsity


def hessian_of(columns: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=draw) * 0.4 + torch.eye(columns)
    return Gram.of((torch.randn(6 * columns, columns, generator=draw) @ mixed)[None]).hessian[0]


def problem_of(rows=16, columns=32, seed=0, spec="int4"):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 9))
    return LayerProblem("fc", weight, QuantSpec(spec, "channel"), gram=hessian_of(columns, seed)[None])


def surgeon(row: torch.Tensor, inv: torch.Tensor, steps: int, target) -> tuple[list[int], list[float], torch.Tensor]:
    """The published loop for one row in float64, with its inverse Hessian kept whole."""
    w, inv, gone, order, losses = row.double().clone(), inv.double().clone(), set(), [], []
    for _ in range(steps):
        cost = (w - target(w)).square() / inv.diagonal()
        p = min((k for k in range(len(w)) if k not in gone), key=lambda k: float(cost[k]))
        fixed = target(w)[p]
        losses.append(float(cost[p]) / 2)
        w = w - inv[:, p] * (w[p] - fixed) / inv[p, p]
        w[p] = fixed
        inv = inv - torch.outer(inv[:, p], inv[p]) / inv[p, p]
        gone.add(p)
        for k in gone:  # rounding must not revive them
            inv[k], inv[:, k], inv[k, k] = 0, 0, 1
        order.append(p)
    return order, losses, w


def test_the_greedy_order_losses_and_weights_are_those_of_the_published_loop():
    problem, steps = problem_of(rows=4, columns=150), 140  # more than once are columns dropped that are gone
    inv, _ = inverse(problem.gram[0], 0.01, "fc")
    found = eliminate(problem.weight.double(), inv, steps)
    fixed = eliminate(problem.weight.double(), inv, steps, lambda w, own: torch.zeros_like(w))
    assert torch.equal(found.order, fixed.order)
    assert torch.allclose(found.weight, fixed.weight, atol=1e-12)
    for r, row in enumerate(problem.weight):
        order, losses, w = surgeon(row, inv, steps, torch.zeros_like)
        assert found.order[r].tolist() == order
        assert torch.allclose(found.losses[r], torch.tensor(losses, dtype=torch.float64), rtol=1e-8)
        assert torch.allclose(found.weight[r], w, atol=1e-9)


def test_what_stays_is_the_least_squares_optimum_of_what_went():
    problem = problem_of(rows=3, columns=10)
    hessian = problem.gram[0].double()
    inv, _ = inverse(hessian, 0.0, "fc")
    found = eliminate(problem.weight.double(), inv, 6)
    weight = without(problem.weight.double(), inv, found.order, torch.tensor([6, 6, 6]))
    assert torch.allclose(weight, found.weight, atol=1e-9)
    for r, row in enumerate(problem.weight.double()):
        kept = [k for k in range(10) if k not in found.order[r].tolist()]
        best = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
        assert torch.allclose(weight[r, kept], best, atol=1e-8)


def test_each_step_is_the_best_of_trying_every_weight():
    problem, steps = problem_of(rows=4, columns=8), 4
    hessian = problem.gram[0].double()

    def optimum(row: torch.Tensor, gone: list[int]) -> tuple[float, torch.Tensor]:
        kept = [k for k in range(8) if k not in gone]
        best = torch.zeros(8, dtype=torch.float64)
        best[kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
        error = best - row
        return float(error @ hessian @ error), best

    ours = ExactObs(damping=0.0)(problem, Sparsity(steps / 8, "row")).weight.double()
    for row, mine in zip(problem.weight.double(), ours, strict=True):
        gone: list[int] = []
        for _ in range(steps):
            gone.append(min(set(range(8)) - set(gone), key=lambda k: optimum(row, [*gone, k])[0]))
        assert torch.allclose(mine, optimum(row, gone)[1], atol=1e-5)


def test_the_budget_is_divided_over_rows_as_well_as_dynamic_programming_does():
    losses = torch.rand(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    curves = torch.cat([torch.zeros(5, 1), losses.cumsum(1)], 1)
    for total in (5, 13, 22):
        counts = counts_of_rows(losses, total)
        assert int(counts.sum()) == total
        mine = sum(float(curves[r, c]) for r, c in enumerate(counts))
        best = {0: 0.0}
        for curve in curves:
            best = {
                t: min(best[t - c] + float(curve[c]) for c in range(8) if t - c in best)
                for t in range(36)
                if any(t - c in best for c in range(8))
            }
        # Between the corners of the hulls a few weights more or less are taken.
        assert mine <= best[total] + float(losses.max())


def test_obq_is_the_published_loop():
    problem = problem_of(rows=6, columns=12, spec="int4")
    inv, _ = inverse(problem.gram[0], 0.01, "fc")
    grid = Rtn("minmax")(problem).qtensor
    ours = Obq("minmax")(problem).qtensor.codes
    for r, row in enumerate(problem.weight):
        scale = float(grid.scale[r])
        _, _, w = surgeon(row, inv, 12, lambda w, s=scale: (w / s).round().clamp(-7, 7) * s)
        theirs = (w / scale).round().to(torch.int8)
        assert (theirs != ours[r]).sum() <= 2, "an outlier goes first, and a tie may go either way"


def test_obq_is_no_worse_than_gptq():
    for seed in range(3):
        problem = problem_of(rows=24, columns=40, seed=seed, spec="int3")
        assert Obq()(problem).output_error < 1.02 * Gptq(refine=0)(problem).output_error


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("asked", ["50%", "70% per row", "2:4"])
def test_every_pruner_leaves_what_was_asked(name, asked):
    problem, sparsity = problem_of(), Sparsity.parse(asked)
    found = PRUNERS[name]()(problem, sparsity)
    assert found.sparsity == pytest.approx(sparsity.share, abs=0.02)
    zeros = found.weight == 0
    if asked == "2:4":
        assert (zeros.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    elif "row" in asked:
        assert (zeros.sum(1) == round(0.7 * 32)).all()
    assert found.method.startswith(name)


@pytest.mark.parametrize("asked", ["50%", "50% per row", "2:4"])
def test_magnitude_is_worst_and_the_second_order_best(asked):
    problem, sparsity = problem_of(rows=32, columns=256), Sparsity.parse(asked)
    error = {name: PRUNERS[name]()(problem, sparsity).output_error for name in PRUNERS}
    assert error["exactobs"] < error["sparsegpt"] < min(error["wanda"], error["obd"], error["magnitude"])


def test_groups_of_n_to_m_lie_along_the_input_channels_of_a_convolution():
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    sample = torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(2))
    problem = LayerProblem("conv", weight, QuantSpec("int8"), Geometry((1, 1), (1, 1), (1, 1)), sample)
    problem = replace(problem, gram=Gram.of(patches(problem, 10_000)).hessian)
    for name in PRUNERS:
        zeros = PRUNERS[name]()(problem, Sparsity.parse("2:4")).weight == 0
        assert (zeros.unflatten(1, (2, 4)).sum(2) == 2).all(), name


def test_the_rows_of_a_layer_share_its_budget():
    problem = problem_of(rows=8, columns=32)
    weight = problem.weight.clone()
    weight[0] *= 30
    found = ExactObs()(replace(problem, weight=weight), Sparsity(0.5)).weight
    zeros = (found == 0).sum(1)
    assert int(zeros.sum()) == 128
    assert zeros[0] < 8


def test_bad_input():
    with pytest.raises(RecipeError, match="sparsity '4:2' is none of"):
        Sparsity.parse("4:2")
    with pytest.raises(RecipeError, match="layer fc: 30 inputs are no multiple of 4"):
        Magnitude()(problem_of(columns=30), Sparsity.parse("2:4"))
    with pytest.raises(CalibrationError, match="layer fc: this solver needs gram"):
        SparseGpt()(replace(problem_of(), gram=None), Sparsity(0.5))
    assert Magnitude()(replace(problem_of(), gram=None), Sparsity(0.5)).output_error is None


@pytest.mark.parametrize("name", PRUNERS)
def test_a_grouped_convolution_is_its_groups_side_by_side(name):
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    sample = torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(2))
    geometry = Geometry((1, 1), (1, 1), (1, 1), groups=2)
    problem = LayerProblem("conv", weight, QuantSpec("int8"), geometry, sample)
    problem = replace(problem, gram=Gram.of(patches(problem, 10_000)).hessian)
    for asked in ("50%", "2:4"):
        whole = PRUNERS[name]()(problem, Sparsity.parse(asked)).weight
        for k in range(2):
            half = replace(problem, weight=weight[3 * k : 3 * k + 3], gram=problem.gram[k : k + 1], geometry=Geometry())
            assert torch.equal(PRUNERS[name]()(half, Sparsity.parse(asked)).weight, whole[3 * k : 3 * k + 3]), asked
    assert ((whole == 0).sum(1) == 2).all()


@pytest.mark.parametrize("name", PRUNERS)
def test_a_curve_gives_the_weights_that_stay_and_the_error_that_comes(name):
    problem, shares = problem_of(rows=16, columns=64), (0.0, 0.25, 0.5, 0.75)
    # ExactOBS judges its curve by the damped Hessian.
    pruner = ExactObs(damping=0.0) if name == "exactobs" else PRUNERS[name]()
    points = pruner.curve(problem, shares)
    assert [kept for kept, _ in points] == [1024 - round(share * 1024) for share in shares]
    assert points[0][1] == 0
    for share, (_, error) in zip(shares[1:], points[1:], strict=True):
        assert error == pytest.approx(pruner(problem, Sparsity(share)).output_error, rel=1e-3)
    assert [error for _, error in points] == sorted(error for _, error in points)
    with pytest.raises(CalibrationError, match="needs gram"):
        pruner.curve(replace(problem, gram=None), shares)


def test_groups_of_three_are_not_cut_by_the_blocks_of_columns():
    zeros = SparseGpt()(problem_of(rows=4, columns=150), Sparsity.parse("1:3")).weight == 0
    assert (zeros.unflatten(1, (-1, 3)).sum(-1) == 2).all()
