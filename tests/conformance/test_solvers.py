"""Every entry of SOLVERS, the whole suite: what a user of any solver may rely on."""

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
import torch
from pretended import accelerator

from tersor.errors import NumericsError
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.recipe import Quantization, Recipe
from tersor.solvers import SOLVERS, Geometry, LayerProblem, Rtn, ask, solver_choice
from tersor.solvers.output_error import measured_error
from tersor.solvers.patches import patches

SPECS = [
    QuantSpec("int8", "channel"),
    QuantSpec("int8"),
    QuantSpec("uint8", "channel", symmetric=False),
    QuantSpec("int4", "group:3"),
    QuantSpec("int8", "filters:4"),
    QuantSpec("int2", "channel", scale_dtype="float16"),
    QuantSpec("ternary", "channel"),
    QuantSpec("binary", "channel"),
    QuantSpec("fp8_e4m3", "channel"),
    QuantSpec("int8", "channel", rounding="stochastic"),
]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem_of(weight: torch.Tensor, spec: QuantSpec) -> LayerProblem:
    """A 3×3 convolution's problem or a linear layer's, with all statistics that any solver needs."""
    geometry = Geometry((1, 1), (1, 1), (1, 1)) if weight.ndim == 4 else Geometry()
    sample = drawn(3, weight.shape[1], 6, 6) if weight.ndim == 4 else drawn(40, weight.shape[1])
    asymmetric = QuantSpec("uint8", symmetric=False)
    limits = (float(sample.min()), float(sample.max()))
    problem = LayerProblem("layer", weight, spec, geometry, sample, asymmetric, limits)
    return replace(problem, gram=Gram.of(patches(problem, 10_000)).hessian)


@pytest.fixture(params=sorted(SOLVERS))
def name(request):
    return request.param


@pytest.fixture
def solver(name):
    return SOLVERS[name]()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", [pytest.param((10, 7, 3, 3), marks=pytest.mark.slow), (10, 7)], ids=str)
def test_solution_is_a_valid_quantized_tensor(solver, spec, shape):
    weight = drawn(*shape)
    solution = solver(problem_of(weight, spec))
    q = solution.qtensor
    assert q.shape == weight.shape
    assert q.spec == spec
    assert q.codes.dtype == spec.format.dtype
    assert q.scale.shape == spec.granularity.scale_shape(weight.shape)
    assert (q.scale > 0).all()
    if spec.format.kind != "float":
        assert q.codes.min() >= spec.low
        assert q.codes.max() <= spec.high
    if spec.symmetric:
        assert (q.zero_point == 0).all()
    assert torch.equal(q.scale, q.scale.to(getattr(torch, spec.scale_dtype)).float())
    error = (q.dequantize().double() - weight.double()).square().sum()
    sqnr = 10 * torch.log10(weight.double().square().sum() / error)
    assert solution.sqnr_db == pytest.approx(sqnr.item(), abs=1e-3)


@pytest.mark.parametrize(
    "spec", [QuantSpec("int4", "channel"), QuantSpec("int8", "channel", rounding="stochastic")]
)
def test_same_problem_same_codes(solver, spec):
    first, second = (solver(problem_of(drawn(8, 5, 3, 3), spec)) for _ in range(2))
    assert torch.equal(first.qtensor.codes, second.qtensor.codes)
    assert torch.equal(first.qtensor.scale, second.qtensor.scale)


def test_weight_is_not_changed(solver):
    weight = drawn(8, 5)
    solver(problem_of(weight, QuantSpec("int4", "channel")))
    assert torch.equal(weight, drawn(8, 5))


def test_dead_channels_stay_dead(solver):
    weight = drawn(6, 5, 3, 3)
    weight[2] = 0
    weight[:, 3] = 0
    solution = solver(problem_of(weight, QuantSpec("int8", "channel")))
    after = solution.qtensor.dequantize()
    assert (after[2] == 0).all()
    # A weight that is 0 may still compensate for its neighbours' errors, where the inputs are known.
    assert "gram" in solver.needs or (after[:, 3] == 0).all()
    assert solution.sqnr_db > 35


def test_all_zero_weight_has_no_error(solver):
    solution = solver(problem_of(torch.zeros(4, 3), QuantSpec("int8", "channel")))
    assert (solution.qtensor.dequantize() == 0).all()
    assert solution.sqnr_db == float("inf")


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:2"])
def test_single_weight(solver, shape, granularity):
    solution = solver(problem_of(torch.full(shape, -0.7), QuantSpec("int8", granularity)))
    assert solution.qtensor.dequantize().item() == pytest.approx(-0.7, rel=0.01)


@pytest.mark.parametrize("spec", [QuantSpec("int4", "group:4"), QuantSpec("int4", "filters:4")], ids=str)
def test_group_that_does_not_divide(solver, spec):
    # Channel sizes grow, so a scale that belonged to another group would show.
    weight = drawn(10, 6) * 4 ** torch.arange(10.0)[:, None] * 3 ** torch.arange(6.0)
    q = solver(problem_of(weight, spec)).qtensor
    part = (slice(8, None),) if spec.granularity.kind == "filters" else (slice(None), slice(4, None))
    scale = q.scale[2:] if spec.granularity.kind == "filters" else q.scale[:, 1:]
    weight, after = weight[part], q.dequantize()[part]
    inside = weight.abs() <= 7 * scale
    assert inside.float().mean() >= 0.6
    steps = 1.5 if "gram" in solver.needs else 0.5
    assert ((after - weight).abs() <= steps * scale * (1 + 1e-5))[inside].all()


def test_curve_costs_more_for_less_error(solver):
    points = solver.curve(problem_of(drawn(16, 12), QuantSpec("int8", "channel")), ["int2", "int4", "int8"])
    scales = 16 * 32
    assert [bits for bits, _ in points] == [16 * 12 * b + scales for b in (2, 4, 8)]
    errors = [error for _, error in points]
    assert errors[0] > 2 * errors[1] > 200 * errors[2] > 0


def test_inputs_that_are_always_zero_cost_nothing(solver):
    problem = problem_of(drawn(6, 8), QuantSpec("int4", "channel"))
    sample = problem.sample.clone()
    sample[:, 2] = 0
    problem = replace(problem, sample=sample, gram=Gram.of(sample[None]).hessian)
    solution = solver(problem)
    assert solution.qtensor.dequantize().isfinite().all()
    assert measured_error(problem, solution) < 0.1


def test_on_correlated_inputs_the_output_is_nearer_than_by_rounding(solver):
    if "gram" not in solver.needs:
        pytest.skip("it does not see the inputs' correlation")
    for seed in range(3):
        x = drawn(200, 24, seed=seed) @ drawn(24, 24, seed=seed + 10)
        spec = QuantSpec("int3", "channel")
        problem = LayerProblem("fc", drawn(16, 24, seed=seed + 20), spec, sample=x, gram=Gram.of(x[None]).hessian)
        ours, plain = (measured_error(problem, s(problem)) for s in (solver, Rtn("minmax")))
        assert ours < 0.97 * plain


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((6, 5), QuantSpec("uint4", "group:3", False)),
        *(pytest.param((10, 7, 3, 3), spec, marks=pytest.mark.slow) for spec in SPECS),
    ],
    ids=str,
)
def test_an_accelerator_finds_what_the_cpu_finds(solver, spec, shape):
    here = problem_of(drawn(*shape), spec)
    fewer = {name: value for name, value in {"rounds": 2, "candidates": 5}.items() if hasattr(solver, name)}
    solver = replace(solver, **fewer)
    with accelerator() as device:
        given = {k: getattr(here, k).to(device) for k in ("weight", "sample", "gram")}
        found = solver(replace(here, **given))
        assert {t.device for t in (found.qtensor.codes, found.qtensor.scale, found.qtensor.zero_point)} == {device}
        codes, error = found.qtensor.to("cpu").codes, measured_error(replace(here, **given), found)
    expected = solver(here)
    assert torch.equal(codes.float(), expected.qtensor.codes.float())
    assert error == pytest.approx(measured_error(here, expected))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_names_the_layer(name, value):
    weight = drawn(4, 6)
    weight[1, 2] = value
    problem = replace(problem_of(drawn(4, 6), QuantSpec("int4", "channel")), weight=weight)
    with pytest.raises(NumericsError, match=r"^layer layer: 1 of its weights are NaN or infinite"):
        ask(problem, solver_choice(name))


def test_options_are_a_frozen_dataclass_that_a_recipe_writes_and_reads(name, solver):
    assert is_dataclass(solver)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        solver.seed = 1
    options = {f.name: getattr(solver, f.name) for f in fields(solver)}
    recipe = Recipe(weights=Quantization(solver={name: options}))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.weights.choice().by == solver
    assert Recipe(weights=Quantization(solver=name)).weights.solver == name
    assert ask(problem_of(drawn(8, 5), QuantSpec("int4", "channel")), recipe.weights.choice()).record.method
