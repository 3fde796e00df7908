"""tersor.trainable of a model: what trains is what quantize_dynamic deploys, and other tools go on working."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tersor
from tersor.errors import RecipeError, TaskError
from tersor.network.quantized import QuantizedLinear
from tersor.network.trained import TRAINED, quantizers_of
from tersor.network.trained.activations import at_run_time
from tersor.numerics import QuantSpec
from tersor.recipe import Quantization, Quantize, Recipe, Rule, Train
from tersor.training.quantizers.scales import learned_scale

RUN_TIME = ("int8-dynamic", "int16-dynamic")
WEIGHTS = ("int8-weight", "int4-weight", "fp16")


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32)).eval()


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def step(student, *inputs):
    """One step of training, which moves every parameter."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    output = student.train()(*inputs)
    loss = (output[0] if isinstance(output, tuple) else output).float().square().mean()
    loss.backward()
    optimizer.step()


def bound(layer, x):
    """What float sums may differ by from exact ones, for one linear layer."""
    weight, span = layer.weight_quantizer(layer.weight), x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)
    return (layer.in_features + 4) * 2**-23 * (span[:, None] * weight.abs().sum(1) + layer.bias.abs())


@pytest.mark.parametrize("recipe", [*RUN_TIME, *WEIGHTS])
def test_a_linear_layer_is_deployed_as_it_was_trained(recipe):
    student, x = tersor.trainable(mlp()[:1], recipe), drawn(16, 64)
    before = {n: p.clone() for n, p in student.named_parameters()}
    step(student, x)
    assert all(not torch.equal(p, before[n]) for n, p in student.named_parameters())
    small = tersor.quantize_dynamic(student.eval())
    with torch.no_grad():
        trained, deployed = student(x), small(x)
        if recipe in WEIGHTS:
            assert torch.equal(trained, deployed)
        assert ((trained - deployed).abs() <= bound(student[0], x)).all()
        assert (trained - mlp()[0](x)).abs().max() > 10 * bound(student[0], x).max()


def test_codes_are_those_of_the_trained_scales_not_solved_again():
    student = tersor.trainable(mlp())
    with torch.no_grad():
        student[0].weight_quantizer.log_scale += 0.3
    small = tersor.quantize_dynamic(student)
    assert isinstance(small[0], QuantizedLinear)
    torch.testing.assert_close(small[0].qweight.scale, learned_scale(student[0].weight_quantizer), rtol=0, atol=0)
    expected = (student[0].weight / small[0].qweight.scale).round().clamp(-127, 127)
    assert torch.equal(small[0].qweight.codes.float(), expected)


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int4-weight", "bf16"])
def test_an_untrained_student_is_what_the_recipe_deploys(recipe):
    model = mlp()
    mine = tersor.quantize_dynamic(tersor.trainable(model, recipe).eval())
    plain = tersor.quantize_dynamic(model, recipe)
    assert mine.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], tensor, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("format", "symmetric", "granularity"),
    [("int8", False, "token"), ("int8", True, "token"), ("int8", False, "tensor"), ("int16", True, "token")],
)
def test_activations_are_those_of_the_formula(format, symmetric, granularity):
    spec, x = QuantSpec(format, granularity, symmetric=symmetric), drawn(5, 3, 16).requires_grad_()
    y = at_run_time(x, spec)
    rows = x.detach().double().reshape(-1, 16)
    rows = rows.reshape(1, -1) if granularity == "tensor" else rows
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    steps = 254 if format == "int8" else 2 * 32512
    scale = 2 * torch.maximum(high, -low) / steps if symmetric else (high - low) / steps
    expected = (rows / scale).round() * scale
    assert ((y.detach().double().reshape(rows.shape) - expected).abs() <= 1.001 * scale).all()
    off_grid = (y.detach().double().reshape(rows.shape) / scale).sub(0).frac().abs()
    assert (torch.minimum(off_grid, 1 - off_grid) < 0.02).all()
    (gradient,) = torch.autograd.grad((y * 3).sum(), x)
    assert (gradient == 3).all()


def one_of_each():
    torch.manual_seed(0)
    square = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return {
        "linear": (nn.Linear(16, 8), drawn(2, 5, 16)),
        "embedding": (nn.Embedding(10, 8, padding_idx=0), torch.tensor([[0, 3], [9, 3]])),
        "conv1d": (nn.Conv1d(**square, padding="same"), drawn(2, 4, 9)),
        "conv2d": (nn.Conv2d(**square, stride=2), drawn(2, 4, 9, 9)),
        "conv3d": (nn.Conv3d(**square, padding_mode="circular", padding=1), drawn(1, 4, 5, 5, 5)),
        "conv_transpose1d": (nn.ConvTranspose1d(**square), drawn(2, 4, 5)),
        "conv_transpose2d": (nn.ConvTranspose2d(**square, stride=2), drawn(2, 4, 5, 5)),
        "conv_transpose3d": (nn.ConvTranspose3d(**square), drawn(1, 4, 3, 3, 3)),
        "lstm": (nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=4), drawn(5, 2, 8)),
        "gru": (nn.GRU(8, 6, batch_first=True, bias=False), drawn(2, 5, 8)),
        "rnn": (nn.RNN(8, 6, nonlinearity="relu"), drawn(5, 2, 8)),
        "lstm_cell": (nn.LSTMCell(8, 6), drawn(2, 8), (drawn(2, 6), drawn(2, 6))),
        "gru_cell": (nn.GRUCell(8, 6), drawn(2, 8), drawn(2, 6)),
        "rnn_cell": (nn.RNNCell(8, 6), drawn(2, 8), drawn(2, 6)),
    }


def test_there_is_a_layer_of_each_kind():
    assert set(one_of_each()) == set(TRAINED)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("op", TRAINED)
def test_every_kind_trains_and_is_deployed_with_its_weights(op):
    layer, *inputs = one_of_each()[op]
    student = tersor.trainable(layer, "int8-weight")
    assert isinstance(student, type(layer))
    assert type(student) is TRAINED[op]
    names = [n for n, p in layer.named_parameters() if p.ndim > 1]
    assert list(quantizers_of(student)) == names
    kept = [n for n, _ in student.named_parameters() if "quantizer" not in n]
    assert kept == [n for n, _ in layer.named_parameters()]
    before = {n: p.clone() for n, p in student.named_parameters()}
    step(student, *inputs)
    unmoved = [n for n, p in student.named_parameters() if torch.equal(p, before[n])]
    assert unmoved == []
    small = tersor.quantize_dynamic(student.eval())
    with torch.no_grad():
        trained, deployed = student(*inputs), small(*inputs)
    first, second = (y[0] if isinstance(y, tuple) else y for y in (trained, deployed))
    recurrent = "weight" not in names
    torch.testing.assert_close(first, second, rtol=1e-6 if recurrent else 0, atol=1e-6 if recurrent else 0)
    for part in ("weight", "weight_hh", "weight_hh_l0"):
        if part in names:
            assert torch.equal(getattr(small, part) + 0, quantizers_of(student)[part](getattr(student, part)))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("op", ["lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell"])
def test_recurrent_layers_at_run_time_are_near_their_deployed_form(op):
    layer, *inputs = one_of_each()[op]
    student = tersor.trainable(layer, "int8-dynamic")
    step(student, *inputs)
    small = tersor.quantize_dynamic(student.eval())
    with torch.no_grad():
        trained, deployed = ((y[0] if isinstance(y, tuple) else y) for y in (student(*inputs), small(*inputs)))
    assert float((trained - deployed).abs().max()) < (1e-6 if op in ("lstm_cell", "rnn_cell") else 0.02)


def test_packed_sequences_and_states():
    torch.manual_seed(0)
    layer, x = nn.LSTM(8, 6, batch_first=True), drawn(3, 5, 8)
    student = tersor.trainable(layer, "int8-dynamic").eval()
    with torch.no_grad():
        packed = pack_padded_sequence(x, [5, 2, 3], batch_first=True, enforce_sorted=False)
        output, (h, _) = student(packed)
        output, _ = pad_packed_sequence(output, batch_first=True)
        alone, (h_alone, _) = student(x[1:2, :2])
    torch.testing.assert_close(output[1:2, :2], alone)
    torch.testing.assert_close(h[:, 1:2], h_alone)


def test_rules_and_layers_that_stay_float():
    recipe = Recipe(name="mine", steps=(Quantize(
        weights=Quantization(format="int4", granularity="group:32"), activations=Quantization(format="fp32"),
        rules=(Rule(layer="2", keep="fp32"),),
    ),))
    student = tersor.trainable(mlp(), recipe)
    assert type(student[2]) is nn.Linear
    plan = tersor.dynamic_plan(student)
    assert [e.name for e in plan] == ["0", "2"]
    assert "int4" in str(plan[0])
    assert "stays float: it was not trained" in str(plan[1])
    small = tersor.quantize_dynamic(student)
    assert isinstance(small[0], QuantizedLinear)
    assert type(small[2]) is nn.Linear


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_tied_weights_stay_tied():
    student = tersor.trainable(Tied(), "int8-weight")
    assert student.head.weight is student.embed.weight
    assert student.head.weight_quantizer is student.embed.weight_quantizer
    assert len(list(student.parameters())) == 2
    step(student, torch.tensor([[1, 2]]))
    small = tersor.quantize_dynamic(student)
    assert small.head.qweight is small.embed.qweight
    copied = copy.deepcopy(student)
    assert copied.head.weight is copied.embed.weight
    assert copied.head.weight is not student.head.weight


@pytest.mark.parametrize("model", [mlp, Tied, lambda: nn.LSTM(64, 8)])
def test_copies_and_saved_states_compute_the_same(model):
    student = tersor.trainable(model())
    x = torch.tensor([[1, 2]]) if isinstance(student, Tied) else drawn(3, 2, 64)
    step(student, x)
    student.eval()
    again = tersor.trainable(model()).eval()
    assert again.load_state_dict(student.state_dict()) is not None
    kinds = student, copy.deepcopy(student), pickle.loads(pickle.dumps(student)), again
    with torch.no_grad():
        outputs = [(y[0] if isinstance(y, tuple) else y) for y in (kind(x) for kind in kinds)]
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
    # A copy trains on its own.
    step(kinds[1], x)
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), again.parameters(), strict=True))


def test_the_model_itself_is_unchanged():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    step(tersor.trainable(model), drawn(4, 64))
    assert type(model[0]) is nn.Linear
    assert not model.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_transformer_layer_calls_its_training_layers_also_in_eval_mode():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    student, x = tersor.trainable(layer, "int4-weight").eval(), drawn(2, 3, 16)
    with torch.no_grad():
        assert float((student(x) - layer(x)).abs().max()) > 1e-3
        torch.testing.assert_close(student(x), tersor.quantize_dynamic(student)(x))


def test_half_precision_and_autocast():
    student, x = tersor.trainable(mlp(), "int8-dynamic"), drawn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert student(x).dtype == torch.bfloat16
    half = tersor.trainable(mlp().bfloat16(), "int8-dynamic")
    half(x.bfloat16()).square().mean().backward()
    assert half[0].weight.grad.dtype == torch.bfloat16
    assert half[0].weight_quantizer.log_scale.dtype == torch.float32


def test_a_recipe_names_the_quantizer():
    steps = Quantize(
        weights=Quantization(format="binary", granularity="channel"), activations=Quantization(format="fp32")
    ), Train(quantizers="irnet")
    student = tersor.trainable(mlp(), Recipe(name="mine", steps=(steps[0], Train(quantizers={"weights": "irnet"}))))
    assert "irnet" in type(student[0].weight_quantizer).__module__
    with pytest.raises(RecipeError, match="a quantizer of activations, whose ranges are computed at run time"):
        tersor.trainable(mlp(), Recipe(name="mine", steps=steps))


@pytest.mark.parametrize("recipe", ["ternary", "binary"])
def test_presets_of_few_levels_train_layers(recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    student, x = tersor.trainable(model, recipe), drawn(4, 3, 6, 6)
    found = [quantizers_of(m)["weight"].spec.format.name for m in student if quantizers_of(m)]
    assert found == ["int8", recipe, "int8"]
    step(student, x)
    small = tersor.quantize_dynamic(student.eval())
    assert len(small[2].weight.unique()) <= 24
    with torch.no_grad():
        assert torch.equal(student(x), small(x))


def test_what_is_refused():
    with pytest.raises(RecipeError, match="distill quantizes nothing: train the model itself"):
        tersor.trainable(mlp(), "distill")
    with pytest.raises(RecipeError, match=r"int8-qat calibrates .* give a tersor.Task"):
        tersor.trainable(mlp(), "int8-qat")
    with pytest.raises(TaskError, match="leave `engine` and `target` out"):
        tersor.trainable(mlp(), engine="torch")
    student = tersor.trainable(mlp())
    with pytest.raises(RecipeError, match=r"^0 trains with its quantization already"):
        tersor.trainable(student)
    with pytest.raises(RecipeError, match=r"trained with their quantization, such as 0: leave `recipe` out"):
        tersor.quantize_dynamic(student, "int4-weight")
    with pytest.raises(RecipeError, match=r"nothing in this Sequential can be quantized by int8-dynamic: 0 \(conv1d\)"):
        tersor.trainable(nn.Sequential(nn.Conv1d(2, 2, 1)))
    student[0].register_forward_hook(lambda *args: None)
    with pytest.raises(RecipeError, match=r"^0 was trained with its quantization, .* it has hooks"):
        tersor.quantize_dynamic(student)
    with torch.no_grad():
        student[0]._forward_hooks.clear()
        student[2].weight[0, 0] = float("nan")
    with pytest.raises(tersor.TersorError, match=r"^2.weight: .*NaN"):
        tersor.quantize_dynamic(student)
