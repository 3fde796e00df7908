"""Every entry of PRUNERS keeps the same promises."""

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
import torch
from pretended import accelerator

from tersor.errors import CalibrationError, NumericsError, RecipeError
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.recipe import Recipe
from tersor.solvers import PRUNERS, Geometry, LayerProblem, Sparsity, ask, pruner_choice
from tersor.solvers.output_error import output_error
from tersor.solvers.patches import patches

SHAPES = [(6, 8, 3, 3), (12, 16)]
ASKED = ["50%", "75%", "50% per row", "2:4", "1:4"]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem_of(shape, seed=0):
    """A 3×3 convolution's problem or a linear layer's, on correlated inputs."""
    weight = drawn(*shape, seed=seed)
    if weight.ndim == 4:
        sample = torch.nn.functional.avg_pool2d(drawn(4, shape[1], 9, 9, seed=seed + 1), 3, 1, 1)
        geometry = Geometry((1, 1), (1, 1), (1, 1))
    else:
        sample, geometry = drawn(200, shape[1], seed=seed + 1) @ drawn(shape[1], shape[1], seed=seed + 2), Geometry()
    problem = LayerProblem("layer", weight, QuantSpec("fp32"), geometry, sample)
    return replace(problem, gram=Gram.of(patches(problem, 10_000)).hessian, tokens=200)


@pytest.fixture(params=sorted(PRUNERS))
def name(request):
    return request.param


@pytest.fixture
def pruner(name):
    return PRUNERS[name]()


@pytest.fixture(params=SHAPES, ids=str)
def problem(request):
    return problem_of(request.param)


@pytest.mark.parametrize("asked", ["50%", pytest.param("2:4", marks=pytest.mark.slow)])
def test_an_accelerator_finds_what_the_cpu_finds(pruner, problem, asked):
    expected = pruner(problem, Sparsity.parse(asked))
    with accelerator() as device:
        found = pruner(
            replace(problem, weight=problem.weight.to(device), gram=problem.gram.to(device)), Sparsity.parse(asked)
        )
        assert found.weight.device == device
        weight = found.weight.cpu()
    assert torch.equal(weight, expected.weight)
    assert found.output_error == pytest.approx(expected.output_error)


@pytest.mark.parametrize("asked", ASKED)
def test_the_sparsity_is_reached_and_no_more(pruner, problem, asked):
    sparsity = Sparsity.parse(asked)
    found = pruner(problem, sparsity)
    assert found.weight.shape == problem.weight.shape
    assert found.weight.isfinite().all()
    zeros = found.weight == 0
    assert not (zeros & found.weight.signbit()).any(), "−0.0 is another value to whoever stores it"
    if sparsity.group is not None:
        kept, size = sparsity.group
        assert (zeros.unflatten(1, (-1, size)).sum(2) == size - kept).all()
    elif sparsity.pattern == "row":
        assert (zeros.flatten(1).sum(1) == round(sparsity.share * zeros[0].numel())).all()
    else:
        # A pruner may count blocks of columns or rows alone: each rounds for itself.
        assert float(zeros.float().mean()) == pytest.approx(sparsity.share, abs=0.01)
    assert found.sparsity == pytest.approx(float(zeros.float().mean()))


def test_the_error_is_that_of_the_weight(pruner, problem):
    found = pruner(problem, Sparsity(0.5))
    assert found.output_error == pytest.approx(output_error(problem.weight, found.weight, problem.gram), rel=1e-5)
    assert 0 < found.output_error < 1


def test_same_problem_same_zeros_and_the_weight_is_kept(pruner, problem):
    before = problem.weight.clone()
    first, second = (pruner(problem, Sparsity(0.5)).weight for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(problem.weight, before)


def test_weights_of_inputs_that_are_always_zero_cost_nothing(pruner, name):
    problem = problem_of((12, 16))
    sample = problem.sample.clone()
    sample[:, :8] = 0
    problem = replace(problem, sample=sample, gram=Gram.of(sample[None]).hessian)
    found = pruner(problem, Sparsity(0.5, "row"))
    assert found.weight.isfinite().all()
    if pruner.needs:
        assert (found.weight[:, :8] == 0).all()
        assert found.output_error == pytest.approx(0, abs=1e-6)


def test_nothing_asked_nothing_removed(pruner, problem):
    found = pruner(problem, Sparsity(0.0))
    assert torch.allclose(found.weight, problem.weight, atol=1e-5)


def test_on_correlated_inputs_it_is_nearer_than_by_magnitude(pruner):
    if not pruner.needs:
        pytest.skip("it does not see the inputs")
    for seed in range(3):
        problem = problem_of((24, 48), 10 * seed)
        x = problem.sample * torch.logspace(-1, 1, 48)
        problem = replace(problem, sample=x, gram=Gram.of(x[None]).hessian)
        ours, plain = (p(problem, Sparsity(0.5)).output_error for p in (pruner, PRUNERS["magnitude"]()))
        assert ours < plain


def test_a_curve_costs_less_for_more_error(pruner, problem):
    points = pruner.curve(problem, [0.0, 0.25, 0.5, 0.75])
    kept, errors = ([p[k] for p in points] for k in (0, 1))
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == problem.weight.numel()
    assert errors == sorted(errors)
    assert errors[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_layer(name, problem, value):
    weight = problem.weight.clone()
    weight.view(-1)[5] = value
    with pytest.raises(NumericsError, match=r"^layer layer: 1 of its weights are NaN or infinite"):
        ask(replace(problem, weight=weight), pruner_choice(name, Sparsity(0.5)))


def test_what_cannot_be_is_refused_by_the_layers_name(name, pruner):
    with pytest.raises(RecipeError, match=r"^layer layer: 16 inputs are no multiple of 3"):
        ask(problem_of((12, 16)), pruner_choice(name, Sparsity.parse("1:3")))
    if pruner.needs:
        with pytest.raises(CalibrationError, match=r"^layer layer: this solver needs gram"):
            ask(replace(problem_of((12, 16)), gram=None), pruner_choice(name, Sparsity(0.5)))


def test_options_are_a_frozen_dataclass_that_a_recipe_writes_and_reads(name, pruner):
    assert is_dataclass(pruner)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        pruner.damping = 1
    options = {f.name: getattr(pruner, f.name) for f in fields(pruner)}
    recipe = Recipe(sparsity="50%", pruner={name: options})
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert pruner_choice(recipe.pruner, Sparsity(0.5)).by == pruner


def test_a_record_is_written(name, problem):
    answer = ask(problem, pruner_choice(name, Sparsity(0.5)))
    line = answer.record
    assert (line.name, line.bits, line.tokens) == ("layer", 32 * problem.weight.numel(), 200)
    assert line.method.startswith(name)
    assert line.output_error is not None
    assert answer.qtensor is None
