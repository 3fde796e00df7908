"""quantize_dynamic: what comes back, what is left and why, and what it refuses."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

import tersor
from tersor.errors import NumericsError, RecipeError, SavedFolderError
from tersor.network.quantized import QuantizedEmbedding, QuantizedLinear, WeightOnly
from tersor.pipeline.modules import replacement
from tersor.recipe import Quantization


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10)).eval()


def apart(a, b):
    return float((a - b).norm() / b.norm())


def by_hand(x, layer):
    """A linear layer on codes, in float64: 255 steps for the range of a row, weights as they are stored."""
    low, high = x.amin(-1, keepdim=True).double(), x.amax(-1, keepdim=True).double()
    scale = (high.clamp(min=0) - low.clamp(max=0)) / 254
    return (x.double() / scale).round() * scale @ layer.weight.double().t() + layer.bias.double()


def test_the_arithmetic_is_integer_not_named_so():
    net, x = mlp(), torch.randn(16, 64)
    small = tersor.quantize_dynamic(net)
    with torch.no_grad():
        got = small(x)
        middle = nn.functional.gelu(by_hand(x, small[0]).float())
        integer = by_hand(middle, small[2])
        floats = nn.functional.linear(net[1](nn.functional.linear(x, small[0].weight, net[0].bias)), small[2].weight)
        floats = floats + net[2].bias
    assert apart(got.double(), integer) < 1e-3
    assert apart(got.double(), integer) < 0.2 * apart(got.double(), floats.double())


@pytest.mark.parametrize(
    ("recipe", "tolerance", "smaller"),
    [
        ("int8-dynamic", 0.02, 3.5),
        ("int16-dynamic", 0.01, 3.5),
        ("int8-weight", 0.01, 3.5),
        ("int4-weight", 0.15, 5.5),
        ("fp16", 5e-4, 1.9),
        ("bf16", 1e-2, 1.9),
    ],
)
def test_every_recipe(recipe, tolerance, smaller, tmp_path):
    net, x = mlp(), torch.randn(16, 64)
    before = copy.deepcopy(net.state_dict())
    small = tersor.quantize_dynamic(net, recipe)
    with torch.no_grad():
        assert apart(small(x), net(x)) < tolerance
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    for name, model in (("net", net), ("small", small)):
        save_file(model.state_dict(), tmp_path / name)
    sizes = [sum(t.numel() * t.element_size() for t in load_file(tmp_path / n).values()) for n in ("net", "small")]
    assert sizes[0] / sizes[1] > smaller


def test_the_state_dict_round_trips(tmp_path):
    x = torch.randn(4, 64)
    small, other = (tersor.quantize_dynamic(mlp(seed)) for seed in (0, 1))
    with torch.no_grad():
        expected = small(x)
        assert not torch.equal(other(x), expected)
        save_model(small, str(tmp_path / "m.safetensors"))
        load_model(other, str(tmp_path / "m.safetensors"))
        assert torch.equal(other(x), expected)
        assert torch.equal(copy.deepcopy(other)(x), expected)


def test_a_state_dict_of_another_recipe_is_refused():
    small = tersor.quantize_dynamic(mlp())
    with pytest.raises(RuntimeError, match="belongs to another recipe"):
        small.load_state_dict(tersor.quantize_dynamic(mlp(), "fp16").state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        small.load_state_dict(mlp().state_dict())
    with pytest.raises(RuntimeError):
        small.load_state_dict(tersor.quantize_dynamic(mlp(), "int4-weight").state_dict())


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int4-weight"])
def test_a_damaged_state_dict_is_refused(recipe):
    small = tersor.quantize_dynamic(mlp(), recipe)
    state = {k: v.clone() for k, v in small.state_dict().items()}
    name = next(k for k in state if k.endswith("scale"))
    state[name].view(-1)[0] = 0.0
    layer = name.removesuffix(".scale")
    with pytest.raises(RuntimeError, match=rf"{layer}: 1 of .* scales are not positive and finite"):
        small.load_state_dict(state)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


def test_tied_weights_stay_tied():
    net = Tied().eval()
    small = tersor.quantize_dynamic(net)
    assert small.head.qweight is small.embed.qweight
    assert isinstance(small, Tied)
    assert isinstance(small.embed, QuantizedEmbedding)
    ids = torch.arange(6).reshape(2, 3)
    with torch.no_grad():
        assert apart(small(ids), net(ids)) < 0.03
    kept = tersor.Recipe(
        weights=tersor.Quantization(), activations=tersor.Quantization(range="runtime", granularity="token"),
        rules=(tersor.Rule(op="embedding", keep="fp32"),),
    )
    with pytest.raises(RecipeError, match="tied to embed"):
        tersor.quantize_dynamic(net, kept)


def test_a_module_used_twice_stays_one():
    shared = nn.Linear(8, 8)
    small = tersor.quantize_dynamic(nn.Sequential(shared, nn.ReLU(), shared).eval())
    assert small[0] is small[2]
    assert isinstance(small[0], QuantizedLinear)


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_what_is_left_is_named_with_its_reason():
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *a: None)
    net = nn.ModuleDict(
        {
            "own": OwnForward(4, 4),
            "hooked": hooked,
            "attention": nn.MultiheadAttention(8, 2),
            "weighed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "bag": nn.EmbeddingBag(5, 4),
            "conv": nn.Conv2d(3, 4, 3),
            "renormed": nn.Embedding(5, 4, max_norm=1.0),
            "plain": nn.Linear(4, 4),
        }
    )
    plan = {e.name: e for e in tersor.dynamic_plan(net)}
    words = {
        "own": "OwnForward has its own forward",
        "hooked": "hooks",
        "attention": "does not know layers of class MultiheadAttention",
        "attention.out_proj": "reads this weight itself",
        "weighed": "parametrization",
        "bag": "does not know layers of class EmbeddingBag",
        "conv": "static recipe",
        "renormed": "max_norm",
    }
    for name, word in words.items():
        assert plan[name].weights is None
        assert word in plan[name].reason
    small = tersor.quantize_dynamic(net)
    assert [n for n, m in small.named_modules() if isinstance(m, QuantizedLinear)] == ["plain"]
    x = torch.randn(3, 1, 8)
    assert torch.equal(small["attention"](x, x, x)[0], net["attention"](x, x, x)[0])


def test_convolutions_take_weights_only():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(8, 4, 2, stride=2))
    small, x = tersor.quantize_dynamic(net.eval(), "int8-weight"), torch.randn(2, 3, 6, 6)
    assert all(isinstance(m, WeightOnly) for m in small)
    with torch.no_grad():
        assert apart(small(x), net(x)) < 0.02
    assert not any("_layer" in k for k in small.state_dict())


def test_rules_choose_and_must_match():
    recipe = tersor.Recipe(
        activations=tersor.Quantization(range="runtime", granularity="token"),
        rules=(
            tersor.Rule(layer="0", keep="fp16"),
            tersor.Rule(layer="2", activations=tersor.Quantization(format="int16", range="runtime")),
        ),
    )
    small = tersor.quantize_dynamic(mlp(), recipe)
    assert small[0].qweight.spec.format.name == "fp16"
    assert small[2].activation.format.name == "int16"
    wrong = recipe.model_copy(update={"rules": (tersor.Rule(layer="heads", keep="fp32"),)})
    with pytest.raises(RecipeError, match="matches no layer of this network; nearest names"):
        tersor.quantize_dynamic(mlp(), wrong)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weights": tersor.Quantization(format="int4", granularity="group:32")}, "per channel or tensor"),
        ({"activations": tersor.Quantization(format="uint8", range="runtime")}, "int8, or int16 symmetric"),
        ({"activations": tersor.Quantization(range="mse")}, "calibrates its activations"),
    ],
)
def test_what_pytorch_cannot_do_is_refused(change, word):
    recipe = tersor.recipe.int8_dynamic().model_copy(update=change)
    with pytest.raises(RecipeError, match=word):
        tersor.quantize_dynamic(mlp(), recipe)


def test_bad_models():
    broken = mlp()
    broken[2].weight.data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"layer 2\.weight: 1 of its weights are NaN"):
        tersor.quantize_dynamic(broken)
    small = tersor.quantize_dynamic(mlp())
    with pytest.raises(RecipeError, match="already quantized"):
        tersor.quantize_dynamic(small)
    with pytest.raises(RecipeError, match="no layer with weights"):
        tersor.quantize_dynamic(nn.ReLU())


def test_half_precision_models_keep_their_dtype():
    net = mlp().to(torch.bfloat16)
    small, x = tersor.quantize_dynamic(net), torch.randn(4, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        assert small(x).dtype == torch.bfloat16
        assert apart(small(x).float(), net(x).float()) < 0.03


def test_empty_and_many_dimensions():
    small = tersor.quantize_dynamic(nn.Linear(8, 4).eval())
    assert small(torch.zeros(2, 0, 8)).shape == (2, 0, 4)
    assert small(torch.zeros(2, 3, 5, 8)).shape == (2, 3, 5, 4)
    assert small(torch.zeros(8)).shape == (4,)


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int16-dynamic", "bf16"])
def test_layers_with_gradients_before_it_do_not_disturb_a_product(recipe):
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 8)).eval()
    small, x = tersor.quantize_dynamic(model, recipe, progress=False), torch.randn(4, 32)
    found = small(x)
    with torch.no_grad():
        assert torch.equal(found, small(x))
    assert not found.requires_grad


@pytest.mark.parametrize("weights", ["int8 per channel", "int4 in groups", "int8 per tensor", "int8 by chance"])
def test_in_pieces_as_in_one(weights, monkeypatch):
    quantization = {
        "int8 per channel": Quantization(format="int8", granularity="channel"),
        "int4 in groups": Quantization(format="int4", granularity="group:32", range="mse"),
        "int8 per tensor": Quantization(format="int8", granularity="tensor"),
        "int8 by chance": Quantization(format="int8", granularity="channel", rounding="stochastic"),
    }[weights]
    recipe = tersor.recipe.int8_weight().model_copy(update={"weights": quantization})
    whole = tersor.quantize_dynamic(mlp(), recipe).state_dict()
    monkeypatch.setattr(replacement, "_CHUNK", 3 * 64)
    pieces = tersor.quantize_dynamic(mlp(), recipe).state_dict()
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(pieces[k], v) for k, v in whole.items())


def test_a_solver_that_needs_data_is_refused():
    with pytest.raises(RecipeError, match=r"^0: gptq solves a weight against calibrated inputs .*tersor.compress"):
        tersor.quantize_dynamic(nn.Sequential(nn.Linear(64, 8)), "int4-gptq", progress=False)


class Hub(nn.Module):
    """A network with the method by which transformers, diffusers and huggingface_hub save."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def save_pretrained(self, folder):
        raise AssertionError("would write what nobody reads")


@pytest.mark.parametrize("copied", [False, True])
def test_saving_for_from_pretrained_is_refused(copied):
    net = nn.ModuleDict({"inner": Hub()})
    small = tersor.quantize_dynamic(net, progress=False)
    small = pickle.loads(pickle.dumps(small)) if copied else small
    with pytest.raises(SavedFolderError, match=r"Hub\.from_pretrained cannot read the codes.*load_state_dict"):
        small["inner"].save_pretrained("folder", safe_serialization=True)
    with pytest.raises(AssertionError):
        net["inner"].save_pretrained("folder")


@pytest.mark.slow
def test_transformers_models_in_half_precision_refuse_to_be_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 2, "vocab_size": 60}
    net = transformers.T5EncoderModel(transformers.T5Config(**options)).eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        exact = net(ids).last_hidden_state
        small = tersor.quantize_dynamic(net.bfloat16(), progress=False)
        found = small(ids).last_hidden_state
    assert found.dtype == torch.bfloat16
    assert apart(found.float(), exact) < 0.05
    with pytest.raises(SavedFolderError, match="T5EncoderModel"):
        small.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
