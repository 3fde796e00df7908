"""AWQ's clipping: the best of the ranges that are tried, and no worse than rounding to nearest."""

from dataclasses import replace

import pytest
import torch

from tersor.numerics import QuantSpec, quantize_tensor
from tersor.observers.gram import Gram
from tersor.solvers import Awq, Geometry, LayerProblem, Rtn
from tersor.solvers.awq import clipped
from tersor.solvers.output_error import measured_error
from tersor.solvers.patches import patches


@pytest.mark.parametrize("granularity", ["channel", "group:5"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_is_the_best_of_its_ranges(granularity, symmetric):
    torch.manual_seed(0)
    weight, x = torch.randn(3, 12) ** 3, torch.randn(50, 12) * torch.rand(12)
    spec = QuantSpec("int3", granularity, symmetric=symmetric)
    found = clipped(weight, Gram.of(x[None]).hessian, spec)
    size = spec.block or 12
    shrunk = 0
    for row in range(3):
        for k in range(0, 12, size):
            w, part = weight[row : row + 1, k : k + size], x[:, k : k + size]
            errors = {}
            for ratio in (1 - 0.5 * i / 20 for i in range(20)):
                low, high = (b * ratio for b in (w.amin().clamp(max=0), w.amax().clamp(min=0)))
                q = quantize_tensor(w, QuantSpec("int3", "tensor", symmetric=symmetric), low, high).dequantize()
                errors[ratio] = float(((q - w) @ part.T).square().sum())
            best = min(errors, key=errors.get)
            low, high = (-w.abs().amax(), w.abs().amax()) if symmetric else (w.amin(), w.amax())
            wanted = w.clamp(low * best, high * best)
            torch.testing.assert_close(found[row : row + 1, k : k + size], wanted)
            shrunk += best < 1
    assert shrunk >= 2


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:4", "filters:2"])
def test_a_grouped_convolution_is_never_worse_than_rounding_between_the_extremes(granularity):
    weight, sample = drawn(6, 4, 3, 3, seed=1) ** 3, drawn(4, 8, 9, 9, seed=2)
    geometry = Geometry((1, 1), (1, 1), (1, 1), groups=2)
    problem = LayerProblem("conv", weight, QuantSpec("int4", granularity), geometry, sample)
    problem = replace(problem, gram=Gram.of(patches(problem, 10_000)).hessian)
    ours, plain = (measured_error(problem, solver(problem)) for solver in (Awq(), Rtn("minmax")))
    assert ours < plain
    one = measured_error(problem, Awq(steps=1)(problem))
    assert one == pytest.approx(plain, rel=1e-6), "the first range is the whole"
