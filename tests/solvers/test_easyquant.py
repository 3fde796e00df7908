"""EasyQuant against the layer's own float64 output, and its patches against PyTorch's convolution."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec, fake_quantize, qparams
from tersor.solvers import EasyQuant, Geometry, LayerProblem, Rtn
from tersor.solvers.patches import patches

UINT8 = QuantSpec("uint8", symmetric=False)
CASES = {
    "conv2d": ((8, 4, 3, 3), Geometry((1, 1), (1, 1), (1, 1)), (2, 4, 7, 9)),
    "strided": ((8, 4, 3, 2), Geometry((2, 3), (1, 0), (1, 1)), (2, 4, 7, 9)),
    "dilated": ((8, 4, 3, 3), Geometry((1, 1), (2, 2), (2, 2)), (2, 4, 7, 9)),
    "grouped": ((8, 2, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 2), (2, 4, 7, 9)),
    "depthwise": ((4, 1, 3, 3), Geometry((2, 2), (1, 1), (1, 1), 4), (2, 4, 7, 9)),
    "same": ((8, 4, 3, 5), Geometry((1, 1), "same", (2, 1)), (2, 4, 7, 9)),
    "valid": ((8, 4, 3, 3), Geometry((1, 1), "valid", (1, 1)), (2, 4, 7, 9)),
    "conv1d": ((8, 4, 5), Geometry((2,), (2,), (1,)), (3, 4, 20)),
    "conv3d": ((8, 4, 2, 3, 3), Geometry((1, 1, 1), (0, 1, 1), (1, 1, 1)), (1, 4, 4, 5, 6)),
    "linear": ((8, 4), Geometry(), (30, 4)),
    "linear of tokens": ((8, 4), Geometry(), (5, 6, 4)),
}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(x: torch.Tensor, weight: torch.Tensor, g: Geometry) -> torch.Tensor:
    """The layer by PyTorch in float64, as [out, positions]."""
    x, weight = x.double(), weight.double()
    if weight.ndim == 2:
        return F.linear(x, weight).flatten(0, -2).T
    conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    y = conv(x, weight, stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.groups)
    return y.movedim(1, 0).flatten(1)


def mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return F.cosine_similarity(a, b, dim=1).mean().item()


def problem_of(case: str, spec: QuantSpec) -> LayerProblem:
    shape, geometry, inputs = CASES[case]
    # A skewed input with an outlier, and weights with one large value a channel.
    sample = drawn(*inputs).relu()
    sample.view(-1)[7] = 30.0
    weight = drawn(*shape, seed=1)
    weight.view(shape[0], -1)[:, 0] *= 6
    return LayerProblem(case, weight, spec, geometry, sample, UINT8, (0.0, float(sample.max())))


@pytest.mark.parametrize("case", CASES)
def test_patches_times_weight_are_the_outputs(case):
    problem = problem_of(case, QuantSpec("int8", "channel"))
    expected = outputs(problem.sample, problem.weight, problem.geometry)
    x = patches(problem, rows=10**6).double()
    product = x @ problem.weight.double().reshape(len(x), -1, x.shape[-1]).transpose(1, 2)
    torch.testing.assert_close(product.movedim(2, 1).flatten(0, 1), expected, rtol=1e-9, atol=1e-9)


def test_patches_are_some_of_all():
    problem = problem_of("conv2d", QuantSpec("int8", "channel"))
    every = {tuple(row.tolist()) for row in patches(problem, rows=10**6)[0]}
    some = [tuple(row.tolist()) for row in patches(problem, rows=20)[0]]
    assert len(set(some)) == len(some) == 20
    assert every.issuperset(some)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "granularity"),
    [
        *(pytest.param(case, "channel", marks=pytest.mark.slow) for case in CASES),
        *(("grouped", g) for g in ("tensor", "filters:3", "group:2")),
    ],
)
def test_output_is_closer_than_where_it_started(case, granularity):
    problem = problem_of(case, QuantSpec("int4", granularity))
    solution = EasyQuant(rows=10**6)(problem)
    before = outputs(problem.sample, problem.weight, problem.geometry)

    def cosine(weight, limits):
        x = fake_quantize(problem.sample, *qparams(*limits, UINT8), UINT8)
        return mean_cosine(before, outputs(x, weight, problem.geometry))

    start = cosine(Rtn("minmax")(problem).qtensor.dequantize(), problem.input_range)
    end = cosine(solution.qtensor.dequantize(), solution.input_range)
    assert end == pytest.approx(solution.cosine, abs=1e-6)
    assert end > start + 1e-4


def test_grid_is_searched_whole_for_a_single_channel():
    """One output channel, float input: the best of the 100 factors, found by trying them."""
    problem = replace(problem_of("linear", QuantSpec("int4", "channel")), input_spec=None)
    problem = replace(problem, weight=problem.weight[:1])
    before = outputs(problem.sample, problem.weight, problem.geometry)
    top = problem.weight.abs().amax(1, keepdim=True)
    codes = [
        fake_quantize(problem.weight, *qparams(-top * r, top * r, problem.spec), problem.spec)
        for r in torch.linspace(0.5, 2, 100, dtype=torch.float64)
    ]
    tried = [mean_cosine(before, outputs(problem.sample, weight, Geometry())) for weight in codes]
    solution = EasyQuant(rows=10**6)(problem)
    assert solution.cosine == pytest.approx(max(tried), abs=1e-7)
    assert solution.input_range is None


def test_thin_tail_of_the_input_is_clipped():
    problem = problem_of("conv2d", QuantSpec("int8", "channel"))
    # The largest of 3,200 half-normal values is far out: 2 bits are better spent on the others.
    sample = drawn(2, 4, 20, 20).abs()
    two = QuantSpec("uint2", symmetric=False)
    problem = replace(problem, sample=sample, input_spec=two, input_range=(0.0, float(sample.max())))
    low, high = EasyQuant(rows=10**6)(problem).input_range
    assert low == 0.0
    assert high < 0.75 * problem.input_range[1]


def test_sample_that_is_missing_or_does_not_fit_names_the_layer():
    problem = problem_of("grouped", QuantSpec("int8", "channel"))
    with pytest.raises(CalibrationError, match="grouped: this solver needs sample"):
        EasyQuant()(replace(problem, sample=None))
    with pytest.raises(CalibrationError, match=r"grouped.*\(2, 5, 7, 9\).*4 channels"):
        EasyQuant()(replace(problem, sample=torch.zeros(2, 5, 7, 9)))
