"""What was prepared, shown data and converted is what compress makes of the same data."""

import copy

import pytest
import torch
from torch import nn

import tersor
from tersor import Recipe
from tersor.errors import CalibrationError, CaptureError, EngineError, RecipeError, TaskError
from tersor.recipe import Quantization, int8_weight
from tersor.solvers import SOLVERS

EXAMPLE = (torch.zeros(1, 3, 8, 8),)
BATCHES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 4)
    ).eval()


class Pair(nn.Module):
    """Two inputs, the second of which is optional to torch but part of the example."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(6, 5)

    def forward(self, a, b=None):
        return self.left(a) - (0 if b is None else self.right(b))


class Greedy(nn.Module):
    """Overwrites its input."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x.mul_(3))


def compressed(model, batches, recipe="int8-static", example=EXAMPLE, **options):
    task = tersor.Task("same", model, example, lambda: batches)
    return tersor.compress(task, recipe, "torch", report=False, progress=False, **options)


def equal(a, b):
    """Every code, scale and bias."""
    first, second = dict(a.network.tensors()), dict(b.network.tensors())
    return first.keys() == second.keys() and all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("recipe", ["int8-static", "int8-tensorrt", Recipe(equalize="on", smooth="on")])
def test_the_result_is_compress_with_the_same_batches(model, recipe):
    prepared = tersor.prepare(model, recipe, EXAMPLE, engine="torch")
    with torch.no_grad():
        for x in BATCHES:
            assert torch.equal(prepared(x), model(x))
    assert prepared.samples == 48
    done, whole = tersor.convert(prepared, progress=False), compressed(model, [(x,) for x in BATCHES], recipe)
    assert equal(done, whole)
    assert torch.equal(done(BATCHES[0]), whole(BATCHES[0]))
    assert (done.recipe, done.engine, done.inputs, done.report) == (whole.recipe, "torch", whole.inputs, None)
    fewer = compressed(model, [(BATCHES[0],)], recipe)
    assert not torch.equal(done(BATCHES[0]), fewer(BATCHES[0])), "the data makes no difference here"


def test_more_data_and_converted_again(model):
    prepared = tersor.prepare(model, example=EXAMPLE, engine="torch")
    prepared(BATCHES[0])
    assert equal(tersor.convert(prepared), compressed(model, [(BATCHES[0],)]))
    prepared(BATCHES[1])
    assert equal(tersor.convert(prepared), compressed(model, [(x,) for x in BATCHES[:2]]))


def test_keywords_in_any_order():
    example = {"a": torch.zeros(1, 4), "b": torch.zeros(1, 6)}
    batch = {"a": torch.randn(16, 4), "b": torch.randn(16, 6)}
    prepared = tersor.prepare(Pair().eval(), example=example, engine="torch")
    assert torch.equal(prepared(b=batch["b"], a=batch["a"]), prepared.model(**batch))
    assert equal(tersor.convert(prepared), compressed(prepared.model, [batch], example=example))


def test_data_of_inference_mode_that_is_overwritten_afterwards(model):
    prepared = tersor.prepare(model, example=EXAMPLE, engine="torch")
    with torch.inference_mode():
        x = BATCHES[0].clone()
        prepared(x)
        x.fill_(7)
    assert not next(iter(prepared.task.calibration()))[0].is_inference()
    assert equal(tersor.convert(prepared), compressed(model, [(BATCHES[0],)]))


def test_what_the_model_does_to_its_input_is_not_kept():
    x = torch.ones(2, 4)
    prepared = tersor.prepare(Greedy().eval(), example=(torch.zeros(1, 4),), engine="torch")
    prepared(x)
    assert x.eq(3).all()
    assert next(iter(prepared.task.calibration()))[0].eq(1).all()


def test_inputs_keep_no_graph_and_gradients_go_on(model):
    prepared = tersor.prepare(model, example=EXAMPLE, engine="torch")
    x = BATCHES[0].clone().requires_grad_()
    prepared(x).sum().backward()
    assert x.grad is not None
    assert not next(iter(prepared.task.calibration()))[0].requires_grad


@pytest.mark.parametrize("recipe", ["int8-weight", "int4-weight", "int8-dynamic"])
def test_a_recipe_without_calibration_needs_no_data(model, recipe):
    done = tersor.convert(tersor.prepare(model, recipe, EXAMPLE, engine="torch"))
    assert equal(done, compressed(model, [(x,) for x in BATCHES], recipe))


@pytest.mark.parametrize(
    "recipe", ["int8-static", "int8-tflite", int8_weight().model_copy(update={"bias_correction": True})]
)
def test_no_data_is_named(model, recipe):
    with pytest.raises(CalibrationError, match=r"prepared Sequential has seen no data.*100 to 1,000 samples"):
        tersor.convert(tersor.prepare(model, recipe, EXAMPLE, engine="torch"))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_table_tells_which_solvers_need_data(name):
    weights = Quantization(format="int4", granularity="channel", solver=name)
    recipe = Recipe(name=name, weights=weights, activations=Quantization(format="fp32"), bias_correction=False)
    prepared = tersor.prepare(nn.Linear(8, 4).eval(), recipe, (torch.zeros(1, 8),), engine="torch")
    if SOLVERS[name].needs:
        with pytest.raises(CalibrationError, match=f"prepared Linear has seen no data, and the recipe {name} needs"):
            tersor.convert(prepared)
    else:
        assert tersor.convert(prepared)(torch.ones(1, 8)).shape == (1, 4)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "said"),
    [
        ((BATCHES[0] * float("nan"),), {}, CalibrationError, "batch 1, argument 0: 3072 values are NaN"),
        ((BATCHES[0].double(),), {}, CalibrationError, "batch 1, argument 0: dtype"),
        ((BATCHES[0], 1), {}, CalibrationError, "batch 1 has 2 arguments"),
        ((), {}, CalibrationError, "batch 1 has 0 arguments"),
        ((), {"input": BATCHES[0]}, TaskError, "the example is positional"),
        ((BATCHES[0],), {"b": 1}, TaskError, "positional and keyword"),
    ],
)
def test_bad_data_is_refused_when_it_comes(model, args, kwargs, error, said):
    prepared = tersor.prepare(model, example=EXAMPLE, engine="torch")
    prepared(BATCHES[0])
    with pytest.raises(error, match=said):
        prepared(*args, **kwargs)
    assert prepared.samples == 16


def test_keywords_that_the_example_has_not():
    prepared = tersor.prepare(Pair().eval(), example={"a": torch.zeros(1, 4)}, engine="torch")
    with pytest.raises(TaskError, match=r"called with \['b'\], which the example lacks"):
        prepared(a=torch.zeros(2, 4), b=torch.zeros(2, 6))


def test_what_the_model_cannot_take_is_not_kept(model):
    prepared = tersor.prepare(model, example=EXAMPLE, engine="torch")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prepared(torch.zeros(2, 3, 5, 5))
    assert prepared.samples == 0


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": torch.relu}, TaskError, "Module"),
        ({"example": ()}, TaskError, "non-empty"),
        ({"example": EXAMPLE[0]}, TaskError, r"example=\(x,\)"),
        ({"example": (torch.zeros(1, 4, 8, 8),)}, CaptureError, "4 channels instead"),
        ({"model": nn.Linear(4, 2), "example": (torch.zeros(1, 4),)}, CaptureError, "training mode"),
        ({"recipe": "int8-statik"}, RecipeError, "did you mean 'int8-static'"),
        ({"recipe": Recipe(rules=[{"layer": "head", "keep": "fp32"}])}, RecipeError, "matches no layer"),
        ({"engine": "tpu"}, EngineError, "no engine 'tpu'"),
        ({"engine": "auto", "recipe": Recipe(rules=[{"op": "lstm", "keep": "fp32"}])}, RecipeError, "matches no layer"),
    ],
)
def test_what_is_wrong_is_said_before_any_data(model, changes, error, said):
    with pytest.raises(error, match=said):
        tersor.prepare(**{"model": model, "example": EXAMPLE, "engine": "torch", **changes})


def test_only_what_was_prepared_is_converted(model):
    with pytest.raises(TaskError, match=r"what tersor\.prepare or tersor\.prepare_qat returned, got Sequential"):
        tersor.convert(model)


def test_the_model_is_neither_copied_nor_changed(model):
    before = copy.deepcopy(model.state_dict())
    prepared = tersor.prepare(model, example=EXAMPLE, engine="torch")
    prepared(BATCHES[0])
    tersor.convert(prepared)
    assert prepared.model is model
    assert not any(m.training for m in prepared.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)])
def test_randomness_is_of_the_recipes_seed_and_leaves_the_callers(model, seeds):
    weights = Quantization(granularity="channel", rounding="stochastic")
    results = []
    for global_seed, seed in enumerate(seeds):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        results.append(compressed(model, [(BATCHES[0],)], Recipe(weights=weights, seed=seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert equal(*results) == (seeds[0] == seeds[1])
