"""What an engine cannot express is refused in words that lead on; a row says what it computes in integers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tersor.engines import ENGINES, simulation
from tersor.errors import EngineError, RecipeError
from tersor.network.capture import capture
from tersor.network.sites import plan
from tersor.numerics.qtensor import qparams
from tersor.numerics.spec import Granularity, QuantSpec
from tersor.policy import COMMON, LAYERS, SIMULATION, Allowed, AtRunTime, Derived, Fixed, Own, Policy, Row, Shared
from tersor.recipe import Quantization, Recipe, int8_static

CPU_ENGINES = ("openvino", "onnxruntime")
INT8 = Allowed(QuantSpec("int8", "channel"), frozenset({"int8"}), frozenset({"tensor", "channel"}), symmetric=True)
SYMMETRIC = Allowed(QuantSpec("int8"), frozenset({"int8"}), frozenset({"tensor"}), symmetric=True)
ASYMMETRIC = Allowed(QuantSpec("uint8", symmetric=False), frozenset({"uint8", "int8"}), frozenset({"tensor"}))
LINEAR = frozenset({"linear"})


def planned(policy: Policy, recipe: Recipe, *layers: nn.Module):
    layers = layers or (nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return plan(capture(nn.Sequential(*layers).eval(), (torch.zeros(1, 8),)), recipe.quantize, policy)


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        ("weights", QuantSpec("int4", "channel"), "cannot run int4 weights; it takes int8"),
        ("activations", QuantSpec("fp8_e4m3"), "cannot run fp8_e4m3 activations; it takes int16, int8, uint8"),
        ("weights", QuantSpec("int8", "group:32"), "quantized per group; it takes channel, tensor"),
        ("activations", QuantSpec("uint8", "channel", symmetric=False), "activations quantized per channel"),
        ("weights", QuantSpec("int8", "channel", symmetric=False), "takes only symmetric weights"),
    ],
)
@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_a_refusal_names_layer_part_and_who_can(engine, kind, spec, said):
    def check(policy: Policy) -> None:
        if kind == "weights":
            policy.check_weight("head", "layer", "conv2d", spec)
        else:
            policy.check_activation("head", spec, {"conv2d"})

    with pytest.raises(RecipeError, match=rf"^head: {engine}.*{said}.*{SIMULATION}"):
        check(ENGINES[engine].policy())
    check(ENGINES[SIMULATION].policy())


def test_refusals_recommend_the_engine_that_simulates():
    assert simulation().name == SIMULATION


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_takes_its_own_specs(name):
    policy = ENGINES[name].policy()
    for row in policy.rows:
        for op in row.operators:
            if isinstance(row.activation, Allowed):
                policy.check_activation("x", row.activation.default, {op})
            if row.weight is not None:
                policy.check_weight("x", row.role, op, row.weight.default)
            if isinstance(row.activation, AtRunTime):
                policy.check_runtime("x", op, row.activation.default, policy.weight)


def test_without_vnni_pairs_of_products_fit_into_16_bits():
    policy, seven = ENGINES["openvino"].policy("x86-vnni"), ENGINES["openvino"].policy("x86-avx2")
    assert 2 * policy.activation.high * policy.weight.high > 2**15 - 1, "which is why"
    assert seven.reduced_weights
    assert not policy.reduced_weights
    assert (seven.weight.low, seven.weight.high) == (-63, 63)
    assert 2 * seven.activation.high * seven.weight.high <= 2**15 - 1
    assert seven.weight.granularity == Granularity.channel(0)
    assert {r.weight.default.high for r in seven.rows if r.weight} == {63}


def test_a_recipe_that_says_int8_gets_seven_bits_too():
    seven = ENGINES["openvino"].policy("x86-avx2").weight
    assert Quantization(format="int8", granularity="tensor").spec(seven).high == 63


def test_signed_engines_keep_their_weights_whole(cpu):
    cpu("avx2")
    policy = ENGINES["tensorrt"].policy()
    assert policy.with_reduced_weights() == policy
    assert policy.weight.high == 127


@pytest.mark.parametrize(("target", "half"), [("x86-vnni", set()), ("x86-bf16", {"bf16"}), ("x86-amx", {"bf16"})])
def test_openvino_computes_in_bf16_where_the_target_does(target, half):
    policy = ENGINES["openvino"].policy(target)
    assert policy.half_arithmetic == half
    if not half:
        with pytest.raises(RecipeError, match="openvino does not compute softmax in bf16 on x86-vnni"):
            policy.check_half("s", "softmax", "bf16")


def test_a_row_has_a_role_that_the_planner_knows():
    with pytest.raises(EngineError, match=r"the role 'layers'; it must be one of layer, runtime"):
        Row("layers", LINEAR)


def test_activations_may_be_symmetric_only():
    policy = Policy("ncnn", (Row("layer", LAYERS, SYMMETRIC, INT8), *COMMON))
    made = planned(policy, int8_static())
    assert {s.spec.symmetric for s in made.activations()} == {True}
    asked = Recipe(activations=Quantization(format="int8", symmetric=False))
    with pytest.raises(RecipeError, match=r"^input: ncnn takes only symmetric activations \(zero point 0\)"):
        planned(policy, asked)


def test_operators_may_differ_in_what_they_take():
    policy = Policy("x", (Row("layer", LINEAR, ASYMMETRIC, INT8), Row("layer", frozenset({"conv1d"}), SYMMETRIC, INT8)))
    spec = QuantSpec("int8", symmetric=False)
    policy.check_activation("v", spec, {"linear"})
    with pytest.raises(RecipeError, match="only symmetric"):
        policy.check_activation("v", spec, {"linear", "conv1d"})


def test_an_engine_may_take_weights_alone():
    policy = Policy("llamacpp", (Row("stored", LINEAR, weight=INT8), *COMMON))
    made = planned(policy, Recipe(activations=Quantization(format="fp32"), bias_correction=False))
    assert [s.kind for s in made.sites] == ["weight", "weight"]
    assert {layer.planned for layer in made.layers} == {"fp32"}
    with pytest.raises(RecipeError, match=r"^0: llamacpp computes no linear with calibrated .*format: fp32"):
        planned(policy, int8_static())
    at_run_time = Recipe(activations=Quantization(range="runtime"), bias_correction=False)
    with pytest.raises(RecipeError, match=r"^0: llamacpp quantizes no input of linear at run time"):
        planned(policy, at_run_time)


def test_weights_may_be_asymmetric_in_groups_only_where_they_are_stored():
    default = QuantSpec("uint4", "group:32", symmetric=False)
    grouped = Allowed(default, frozenset({"uint4"}), frozenset({"group"}), multiple=32)
    policy = Policy("x", (Row("layer", LINEAR, ASYMMETRIC, INT8), Row("stored", LINEAR, weight=grouped)))
    policy.check_weight("w", "stored", "linear", grouped.default)
    with pytest.raises(RecipeError, match=r"w: x keeps weights in groups of 32 .* take group:64 or channel"):
        policy.check_weight("w", "stored", "linear", QuantSpec("uint4", "group:48", symmetric=False))
    with pytest.raises(RecipeError, match=r"With `activations: {format: fp32}` it takes those, too"):
        policy.check_weight("w", "layer", "linear", grouped.default)


@pytest.mark.parametrize(
    ("op", "spec", "scale", "zero_point"),
    [
        (torch.sigmoid, "uint8", 1 / 256, 0),
        (lambda x: x.softmax(-1), "uint8", 1 / 256, 0),
        (torch.sigmoid, "int8", 1 / 256, -128),
        (F.hardsigmoid, "uint8", 1 / 255, 0),
    ],
)
def test_the_output_of_some_functions_has_a_fixed_range(op, spec, scale, zero_point):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.b(op(self.a(x)))

    recipe = Recipe(activations=Quantization(format=spec, symmetric=False))
    policy = ENGINES["openvino"].policy("x86-vnni")
    made = plan(capture(Net().eval(), (torch.zeros(1, 8),)), recipe.quantize, policy)
    fixed = {s.fixed for s in made.activations()} - {None}
    assert len(fixed) == 1
    found = qparams(*fixed.pop(), QuantSpec(spec, symmetric=False))
    assert (float(found[0]), int(found[1])) == (pytest.approx(scale, rel=1e-6), zero_point)
    recipe = Recipe(activations=Quantization(format="int16"))
    wide = plan(capture(Net().eval(), (torch.zeros(1, 8),)), recipe.quantize, policy)
    assert {s.fixed for s in wide.activations()} == {None}, "of 8 bits only"


def test_outputs_are_shared_owned_or_fixed_and_biases_derived():
    policies = {name: engine.policy() for name, engine in ENGINES.items()}
    for policy in policies.values():
        assert isinstance(policy.row("transparent", "cat").output, Shared)
        assert isinstance(policy.row("float", "softmax").output, Fixed)
    runtime = policies["onnxruntime"]
    assert isinstance(runtime.row("layer", "conv2d").output, Own)
    assert runtime.row("layer", "linear").output is None
    assert runtime.row("layer", "conv2d").bias == Derived(32)
    assert [name for name, policy in policies.items() if policy.integer_biases] == ["onnxruntime"]


def test_a_join_whose_output_is_its_own_shares_nothing():
    class Join(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 4)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    network = capture(Join().eval(), (torch.zeros(1, 8),))
    layers, joins = Row("layer", LINEAR, ASYMMETRIC, INT8), frozenset({"cat"})
    groups = {}
    for name, output in (("shared", Shared()), ("own", Own())):
        made = plan(network, int8_static().quantize, Policy("x", (layers, Row("transparent", joins, output=output))))
        groups[name] = {s.node: s.group for s in made.activations()}
    assert groups["shared"]["linear"] == groups["shared"]["linear_1"]
    assert len({groups["own"][n] for n in ("linear", "linear_1", "cat")}) == 3
