"""What an engine cannot express is refused in words that lead on."""

import pytest

from tersor.engines import ENGINES
from tersor.errors import RecipeError
from tersor.numerics.spec import Granularity, QuantSpec
from tersor.policy import x86

openvino, onnxruntime, simulation, tensorrt = (
    ENGINES[name] for name in ("openvino", "onnxruntime", "torch", "tensorrt")
)


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        ("weights", QuantSpec("int4", "channel"), "cannot run int4 weights; it takes int8"),
        ("activations", QuantSpec("fp8_e4m3"), "cannot run fp8_e4m3 activations; it takes int16, int8, uint8"),
        ("weights", QuantSpec("int8", "group:32"), "quantized per group; it takes channel, tensor"),
        ("activations", QuantSpec("uint8", "channel", symmetric=False), "activations quantized per channel"),
        ("weights", QuantSpec("int8", "channel", symmetric=False), "only with symmetric weights"),
    ],
)
@pytest.mark.parametrize("engine", [openvino, onnxruntime])
def test_a_refusal_names_layer_part_and_who_can(engine, kind, spec, said):
    with pytest.raises(RecipeError, match=rf"^head: {engine.name}.*{said}.*torch"):
        engine.policy().check("head", kind, spec)
    simulation.policy().check("head", kind, spec)


@pytest.mark.parametrize("engine", [openvino, onnxruntime, tensorrt, simulation])
def test_an_engine_takes_its_own_specs(engine):
    policy = engine.policy()
    policy.check("x", "activations", policy.activation)
    policy.check("x", "weights", policy.weight)


def test_without_vnni_pairs_of_products_fit_into_16_bits():
    policy = x86("any")
    assert 2 * policy.activation.high * policy.weight.high > 2**15 - 1, "which is why"
    seven = policy.without_vnni()
    assert seven.reduced_weights
    assert (seven.weight.low, seven.weight.high) == (-63, 63)
    assert 2 * seven.activation.high * seven.weight.high <= 2**15 - 1
    assert seven.weight.granularity == Granularity.channel(0)


def test_a_recipe_that_says_int8_gets_seven_bits_too():
    from tersor.recipe import Quantization

    seven = x86("any").without_vnni().weight
    assert Quantization(format="int8", granularity="tensor").spec(seven).high == 63


def test_signed_engines_keep_their_weights_whole():
    assert tensorrt.policy().without_vnni() == tensorrt.policy()
