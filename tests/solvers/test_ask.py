"""Who solves a weight is chosen from the tables with all options, and every answer carries the layer's name."""

from dataclasses import replace

import pytest
import torch

from tersor.errors import CalibrationError, NumericsError, RecipeError
from tersor.numerics import QuantSpec
from tersor.recipe import Quantization, Recipe
from tersor.solvers import (
    SOLVERS,
    AdaRound,
    Awq,
    EasyQuant,
    Gptq,
    Hqq,
    LayerProblem,
    Obq,
    Rtn,
    SparseGptq,
    Sparsity,
    ask,
    joint_choice,
    pruner_choice,
    solver_choice,
    solver_for,
)
from tersor.solvers.prune import ExactObs, SparseGpt


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem_of(**more):
    x = drawn(60, 12, seed=1) @ drawn(12, 12, seed=2)
    problem = LayerProblem("block.fc", drawn(8, 12), QuantSpec("int4", "channel"), gram=(2 * x.T @ x / 60)[None])
    return replace(problem, **more)


@pytest.mark.parametrize("range", ["minmax", "mse"])
@pytest.mark.parametrize(
    ("name", "option", "kind"),
    [
        ("rtn", "range", Rtn), ("gptq", "range", Gptq), ("obq", "range", Obq), ("adaround", "range", AdaRound),
        ("hqq", "start", Hqq), ("easyquant", "start", EasyQuant),
    ],
)  # fmt: skip
def test_a_recipes_range_is_the_solvers_own(name, option, kind, range):
    for solver in (solver_for(name, range), Quantization(solver=name, range=range).choice().by):
        assert type(solver) is kind
        assert getattr(solver, option) == range


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if "seed" in s.__dataclass_fields__])
def test_the_seed_of_the_recipe_reaches_every_solver_that_has_one(name):
    assert solver_choice(name, seed=7).by.seed == 7
    assert Quantization(solver=name).choice(7).by.seed == 7
    assert solver_choice({name: {"seed": 3}}, seed=7).by.seed == 3, "its own option wins"


def test_a_seed_changes_stochastic_codes():
    spec = QuantSpec("int4", "channel", rounding="stochastic")
    for name in ("rtn", "hqq", "awq"):
        codes = [
            ask(problem_of(spec=spec), solver_choice(name, rounding="stochastic", seed=seed)).qtensor.codes
            for seed in (1, 1, 2)
        ]
        assert torch.equal(codes[0], codes[1]), name
        assert not torch.equal(codes[0], codes[2]), name


def test_options_are_those_of_the_dataclass():
    asked = {"gptq": {"damping": 0.02, "order": "natural", "refine": 0}}
    assert solver_choice(asked, "mse").by == Gptq("mse", "natural", 0.02, 0)
    assert solver_choice({"hqq": {"start": "mse"}}).by.start == "mse", "a default range does not overrule an option"
    assert solver_choice(range={"easyquant": {"rounds": 2}}).by == EasyQuant(rounds=2)
    assert solver_choice(range="awq").by == Awq()
    assert pruner_choice({"exactobs": {"damping": 0.1}}, Sparsity(0.5)).by == ExactObs(0.1)
    assert pruner_choice("sparsegpt", Sparsity(0.5)).by == SparseGpt()
    joint = joint_choice({"sparsegpt": {"damping": 0.1}}, Sparsity(0.5), "gptq", "mse")
    assert joint.by == SparseGptq(Sparsity(0.5), "mse", 0.1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"solver": "gtpq"}, r"unknown solver 'gtpq' \(did you mean 'gptq'\?\); one of rtn, "),
        ({"solver": {"gptq": {"dampign": 1}}}, r"gptq has no option dampign=1 \(did you mean 'damping'\?\); it takes "),
        ({"solver": {"gptq": {"order": "natrual"}}}, r"'order' is 'natrual': input should be .*did you mean 'natural'"),
        ({"solver": {"gptq": {"damping": -1}}}, "'damping' is -1: input should be greater than or equal to 0"),
        ({"solver": {"gptq": {"refine": 1.5}}}, "'refine' is 1.5: input should be a valid integer"),
        ({"solver": {"hqq": {"norm": 0}}}, "'norm' is 0: input should be greater than 0"),
        ({"solver": ["gptq"]}, r"solver \['gptq'\] must be a name, or a name with its options"),
        ({"solver": {"gptq": {}, "rtn": {}}}, "must be a name, or a name with its options"),
        ({"solver": "gptq", "range": "easyquant"}, "gptq takes the ranges minmax and mse, not the solver easyquant"),
        ({"solver": "obq", "range": "kl"}, "obq takes the ranges minmax and mse, not kl"),
        ({"solver": "awq", "range": "mse"}, "awq has no range to choose, so `range: mse` has no meaning"),
        ({"solver": {"obq": {"range": "minmax"}}, "range": "mse"}, "its range is minmax and `range` is mse"),
        ({"solver": "adaround", "rounding": "stochastic"}, "adaround rounds to nearest.*rtn, easyquant, awq, hqq"),
        ({"range": "kl"}, "weights.range is 'kl'; weights take one of minmax, mse, easyquant, awq"),
        ({"range": {"percentile": {"percent": 99}}}, "weights take one of"),
    ],
)
def test_what_a_solver_does_not_take_is_named(asked, said):
    with pytest.raises(ValueError, match=said):
        Recipe(weights=Quantization(**asked))


@pytest.mark.parametrize(
    ("range", "said"),
    [
        ("awq", "activations.range is 'awq'; one of minmax, .*dynamic"),
        ("percentil", r"unknown range 'percentil' \(did you mean 'percentile'\?\)"),
        ({"percentile": {"percent": 200}}, r"percentile 200.0 lies outside \(0, 100\]"),
        ({"percentile": {"share": 99}}, "has no option share=99; it takes percent"),
        ({"minmax": {"share": 99}}, "it takes none"),
        ({"easyquant": {"rounds": 2}}, "options of a solver are for `weights`"),
    ],
)
def test_what_an_estimator_does_not_take_is_named(range, said):
    with pytest.raises(ValueError, match=said):
        Recipe(activations=Quantization(range=range))


@pytest.mark.parametrize(
    ("pruner", "said"),
    [
        ("sparsegtp", r"unknown pruner 'sparsegtp' \(did you mean 'sparsegpt'\?\)"),
        ({"sparsegpt": {"damping": "much"}}, "'damping' is 'much': input should be a valid number"),
        ({"wanda": {"damping": 0.1}}, "wanda has no option damping=0.1; it takes none"),
    ],
)
def test_what_a_pruner_does_not_take_is_named(pruner, said):
    with pytest.raises(ValueError, match=said):
        Recipe(sparsity="50%", pruner=pruner)


def test_one_sweep_takes_the_options_of_both_or_names_what_it_does_not_take():
    half = Sparsity(0.5)
    assert joint_choice("sparsegpt", half, {"gptq": {"damping": 0.1}}).by.damping == 0.1
    with pytest.raises(RecipeError, match="sparsegpt with gptq has no option refine=1; it takes sparsity, range, damp"):
        joint_choice("sparsegpt", half, {"gptq": {"refine": 1}})
    with pytest.raises(RecipeError, match=r"damping is 0.2 and 0.1; name it once"):
        joint_choice({"sparsegpt": {"damping": 0.2}}, half, {"gptq": {"damping": 0.1}})
    with pytest.raises(RecipeError, match="the pruner sparsegpt and the solver gptq, in one sweep, not wanda and gptq"):
        joint_choice("wanda", half, "gptq")


@pytest.mark.parametrize(
    "text",
    [
        "weights: {solver: {gptq: {damping: 1e-3, order: natural}}}",
        "weights: {range: {easyquant: {span: [0.5, 1.5]}}}",
        "activations: {range: {percentile: {percent: 99}}}",
        "sparsity: 50%\npruner: {sparsegpt: {damping: 0.02}}",
    ],
)
def test_options_in_yaml_read_back(text):
    recipe = Recipe.from_yaml(text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe != Recipe()


def test_options_without_values_are_the_name_alone():
    assert Quantization(solver={"gptq": None}).solver == Quantization(solver={"gptq": {}}).solver == "gptq"


def test_the_old_name_of_dynamic_is_taken_and_not_written():
    recipe = Recipe.from_yaml("activations: {range: runtime}")
    assert recipe.activations == Quantization(range="dynamic")
    assert (recipe.activations.when, Quantization().when, Quantization(format="fp32").when) == (
        "dynamic", "static", "never",
    )  # fmt: skip
    assert "runtime" not in recipe.to_yaml()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_an_answer_is_that_of_the_solver_with_a_record():
    problem = problem_of(tokens=60)
    answer, solution = ask(problem, solver_choice("obq", "mse")), Obq("mse")(problem)
    assert torch.equal(answer.qtensor.codes, solution.qtensor.codes)
    line = answer.record
    assert (line.name, line.method, line.tokens) == ("block.fc", solution.method, 60)
    assert (line.output_error, line.sqnr_db, line.damping) == (solution.output_error, solution.sqnr_db, 0.01)
    assert line.output_error < line.rtn_error
    pruned = ask(problem, pruner_choice("exactobs", Sparsity(0.5)))
    assert pruned.qtensor is None
    assert (pruned.weight == 0).float().mean() == 0.5
    assert (pruned.record.bits, pruned.record.tokens, pruned.record.method) == (96 * 32, 60, "exactobs, damping 0.01")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SOLVERS)
def test_values_that_are_not_finite_name_the_layer(name, value):
    problem = problem_of(sample=drawn(20, 12))
    for field in ("weight", "gram", "sample"):
        broken = getattr(problem, field).clone()
        broken.view(-1)[3] = value
        with pytest.raises(NumericsError, match=r"^layer block\.fc: 1 of its .* NaN or infinite; repair"):
            ask(replace(problem, **{field: broken}), solver_choice(name))


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.needs])
def test_without_its_statistics_a_solver_names_the_layer(name):
    with pytest.raises(CalibrationError, match=r"^layer block\.fc: this solver needs (gram|sample)"):
        ask(problem_of(gram=None), solver_choice(name))


def test_errors_of_a_solver_begin_with_the_layer():
    with pytest.raises(NumericsError, match=r"^layer block\.fc: "):
        ask(problem_of(weight=torch.full((8, 12), 1e38), spec=QuantSpec("int4", "channel", scale_dtype="float16")),
            solver_choice("rtn", "minmax"))  # fmt: skip
