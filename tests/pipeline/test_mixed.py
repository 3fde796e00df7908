"""Precision chosen by hand, layer by layer: every engine does as the rule says, or refuses with the reason."""

import pytest
import torch
from parts import distance, task_of
from torch import nn
from torch.nn import functional as F

import tersor
from tersor.errors import RecipeError
from tersor.network.network import op_name, walk
from tersor.pipeline.graph.audit import audit
from tersor.recipe import Quantization, Recipe, Rule, resolve

ENGINES = ("torch", "openvino", "onnxruntime")
FLOAT = Quantization(format="fp32")
INT4 = Quantization(format="int4", granularity="group:32", range="mse")
INT16 = Quantization(format="int16")


def computes_bf16(engine: str) -> bool:
    from tersor.engines import engine as find

    return "bf16" in find(engine).policy().half_arithmetic


def done(task, recipe, engine, *rules):
    recipe = resolve(recipe).model_copy(update={"rules": rules})
    return tersor.compress(task, recipe, engine, report=False, progress=False, threads=1)


def inputs(task, seed=9):
    shapes = [x.shape[1:] for x in task.example]
    return tuple(torch.randn(4, *s, generator=torch.Generator().manual_seed(seed)) for s in shapes)


class Attention(nn.Module):
    """Two heads, written with the fused operator or with its parts; it ends in the attended values."""

    def __init__(self, fused=True):
        super().__init__()
        torch.manual_seed(0)
        self.fused = fused
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 16)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(2, 3)), -1, dtype=torch.float32), v)


@pytest.fixture(scope="module")
def attention():
    return task_of(Attention(), (12, 32))


def in_half(x, dtype):
    return torch.equal(x, x.to(dtype).float())


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["bf16", "fp16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_attention_is_computed_in_half_precision_or_refused(attention, engine, keep):
    rule = Rule(op="scaled_dot_product_attention", keep=keep)
    if engine != "torch" and not (keep == "bf16" and computes_bf16(engine)):
        refusal = rf"^scaled_dot.*: {engine} does not compute scaled_dot\w+ in {keep}.*`keep: fp32`.*torch"
        with pytest.raises(RecipeError, match=refusal):
            done(attention, "int8-static", engine, rule)
        return
    half = done(attention, "int8-static", engine, rule)
    floats = done(attention, "int8-static", engine, Rule(op=rule.op, keep="fp32"))
    x, dtype = inputs(attention), {"bf16": torch.bfloat16, "fp16": torch.float16}[keep]
    assert in_half(half(*x), dtype)
    assert in_half(half.network(*x), dtype)
    assert not in_half(floats(*x), dtype)
    # OpenVINO cuts off where PyTorch rounds, so the two are as far from each other as from float.
    assert distance(half(*x), floats.network(*x)) < 3 * distance(half.network(*x), floats.network(*x)) < 0.05
    kinds = {layer.op: layer.planned for layer in half.plan.layers}
    assert kinds["scaled_dot_product_attention"] == keep
    assert kinds["linear"] == "int8"
    rows = [r for r in half.runner.executed() if "scaled_dot_product_attention" in r.nodes]
    assert {r.precision for r in rows} == {keep}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_softmax_that_names_its_type_is_computed_in_half_precision_too(engine):
    if not computes_bf16(engine):
        pytest.skip("this CPU has no BF16")
    task = task_of(Attention(fused=False), (12, 32))
    half = done(task, "int8-weight", engine, Rule(op="softmax", keep="bf16"), Rule(op="matmul", keep="bf16"))
    seen = {}

    def look(node, value):
        seen[op_name(node)] = value.dtype

    walk(half.network, inputs(task), look)
    assert (seen["softmax"], seen["matmul"], seen["linear"]) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert in_half(half(*inputs(task)), torch.bfloat16)
    executed = {n: r.precision for r in half.runner.executed() for n in r.nodes}
    assert (executed["softmax"], executed["matmul"], executed["linear"]) == ("bf16", "bf16", "fp32")


@pytest.mark.slow
def test_bf16_planned_for_another_target_is_noted_where_this_cpu_has_none(monkeypatch):
    task = task_of(Attention(fused=False), (12, 32))
    monkeypatch.setattr("tersor.engines.openvino.OpenVINO._computes_bf16", lambda self: False)
    recipe = resolve("int8-weight").model_copy(update={"rules": (Rule(op="softmax", keep="bf16"),)})
    with pytest.raises(RecipeError, match="openvino does not compute softmax in bf16 on"):
        tersor.compress(task, recipe, "openvino", report=False, progress=False)
    made = tersor.compress(task, recipe, "openvino", target="x86-amx", report=False, progress=False)
    noted = [row for row in made.runner.executed() if row.note]
    assert noted
    assert all("softmax" in row.nodes and "no BF16 products" in str(row.note) for row in noted)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_kept_in_half_is_stored_so_everywhere_and_computed_so_where_it_can_be(attention, engine):
    half = done(attention, "int8-static", engine, Rule(layer="[qkv]", keep="bf16"))
    layers = [layer for layer in half.plan.layers if layer.op == "linear"]
    assert {layer.weight_format for layer in layers} == {"bf16"}
    computed = "bf16" if computes_bf16(engine) else "fp32"
    assert {layer.planned for layer in layers} == {computed}
    if computed == "fp32":
        assert all("stored in bf16, computed in float" in layer.reason for layer in layers)
    names = {layer.node for layer in layers}
    assert {r.precision for r in half.runner.executed() if names & set(r.nodes)} == {computed}


def test_half_precision_survives_saving(attention, tmp_path):
    half = done(attention, "int8-static", "torch", Rule(op="scaled*", keep="bf16"))
    half.save(tmp_path / "out")
    again = tersor.load(tmp_path / "out")
    assert torch.equal(again(*inputs(attention)), half(*inputs(attention)))
    assert again.runner.executed() == half.runner.executed()


def test_an_operator_of_several_values_cannot_be_kept_in_half():
    class Largest(nn.Module):
        def forward(self, x):
            return torch.topk(x, 2)[0]

    with pytest.raises(RecipeError, match=r"topk: topk returns several values.*fp16.*fp32"):
        done(task_of(Largest(), (8,)), "int8-static", "torch", Rule(op="topk", keep="fp16"))


class Chain(nn.Module):
    """Convolutions with a residual sum, and two linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.fc, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.b(x) + x)
        return self.head(torch.relu(self.fc(torch.relu(self.c(x)).mean((2, 3)))))


@pytest.fixture(scope="module")
def chain():
    return task_of(Chain(), (3, 8, 8))


@pytest.fixture(scope="module")
def eight(chain):
    return done(chain, "int8-static", "torch")


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["b", "head"])
@pytest.mark.parametrize("engine", ENGINES)
def test_int16_activations_of_one_layer_are_those_of_the_simulation(chain, eight, engine, layer):
    mixed = done(chain, "int8-static", engine, Rule(layer=layer, activations=INT16))
    wide = [s for s in mixed.plan.activations() if s.spec.format.name == "int16"]
    assert len(wide) == 1, "what it reads, not what it gives"
    x = inputs(chain)
    off, apart = distance(mixed(*x), mixed.network(*x)), distance(eight.network(*x), mixed.network(*x))
    assert off < 0.1 * apart
    planned = {row.name: row for row in mixed.plan.layers}
    if engine == "torch":
        assert planned[layer].planned == "int16"
        return
    assert planned[layer].planned == "fp32"
    assert "has int16 codes, with which" in planned[layer].reason
    node = planned[layer].node
    assert {r.precision for r in mixed.runner.executed() if r.nodes[:1] == (node,)} == {"fp32"}
    others = [row for row in planned.values() if row.weight_format == "int8" and row.name not in (layer, "a", "b")]
    assert {row.planned for row in others} == {"int8"}


def test_symmetric_int16_has_a_number_of_levels_that_openvino_keeps_on_every_cpu(chain):
    mixed = done(chain, "int8-static", "openvino", Rule(layer="*", activations=INT16))
    fakes = [op for op in mixed.runner.model.get_ordered_ops() if op.get_type_name() == "FakeQuantize"]
    levels = {op.get_attributes()["levels"] for op in fakes}
    assert levels == {65_536}
    low, high = (float(fakes[0].input_value(k).get_node().get_data().item()) for k in (1, 2))
    assert low / high == pytest.approx(-32_768 / 32_767)


def test_sixteen_bits_hold_what_eight_do_not(chain):
    spread = inputs(chain)
    errors = {}
    with torch.no_grad():
        exact = chain.model(*spread)
    for format in ("auto", "int16"):
        recipe = Recipe(activations=Quantization(format=format), bias_correction=False)
        errors[format] = distance(done(chain, recipe, "torch")(*spread), exact)
    assert errors["int16"] < errors["auto"]


def test_sixteen_bits_reach_the_end_of_a_sigmoid():
    """With 256 codes the range ends at 255/256, on the grid; with more that would be the largest error there is."""
    task = task_of(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2)), (4,))
    task.model[0].bias.data.fill_(40.0)
    mixed = done(task, "int8-static", "torch", Rule(layer="2", activations=INT16))
    found = []
    walk(mixed.network, inputs(task), lambda node, v: found.append(v) if node.name == "sigmoid_quantized" else None)
    assert abs(float(found[0].max()) - 1) < 1e-4


def test_int16_at_run_time_is_refused_by_openvino(chain):
    rule = Rule(layer="fc", activations=Quantization(format="int16", range="runtime"))
    with pytest.raises(RecipeError, match=r"^fc: openvino cannot quantize activations as int16 .*it takes int8"):
        done(chain, "int8-dynamic", "openvino", rule)


class Wide(nn.Module):
    """Linear layers of 128 inputs and more, whose inputs lie on no grid."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.mid, self.down = nn.Linear(128, 256), nn.Linear(256, 144), nn.Linear(144, 40)

    def forward(self, x):
        return self.down(torch.tanh(self.mid(torch.tanh(self.up(x)))))


@pytest.fixture(scope="module")
def wide():
    return task_of(Wide(), (6, 128))


def bytes_of(compressed, folder):
    compressed.runner.save(folder)
    return (folder / "model.bin").stat().st_size


def test_int4_weights_are_stored_in_4_bits_and_compute_what_was_simulated(wide, tmp_path):
    four = done(wide, "int4-weight", "openvino")
    x = inputs(wide)
    assert distance(four(*x), four.network(*x)) < 1e-5
    weights = sum(p.numel() for p in wide.model.parameters() if p.ndim > 1)
    scales, biases = 256 * 4 + 144 * 8 + 40 * 5, 256 + 144 + 40
    # 144 inputs are four groups and a half; the last one is filled up.
    expected = (weights + 40 * 16) // 2 + 4 * (scales + biases)
    assert expected <= bytes_of(four, tmp_path) < expected + 700
    kept = [op for op in four.runner.model.get_ordered_ops() if str(op.get_output_element_type(0)).count("int4")]
    assert len(kept) == 3


@pytest.mark.slow
def test_int4_weights_of_convolutions(tmp_path):
    class Convolutions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 48, 3), nn.Conv2d(48, 32, 3)
            self.c, self.d = nn.Conv2d(32, 32, 3, groups=32), nn.ConvTranspose2d(32, 40, 2)

        def forward(self, x):
            return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    task = task_of(Convolutions(), (3, 12, 12))
    four = done(task, "int4-weight", "openvino")
    assert distance(four(*inputs(task)), four.network(*inputs(task))) < 1e-5
    eight = done(task, "int8-weight", "openvino")
    assert bytes_of(four, tmp_path) < 0.75 * bytes_of(eight, tmp_path)


    ragged = done(task, "int4-weight", "onnxruntime")
    assert distance(ragged(*inputs(task)), ragged.network(*inputs(task))) < 1e-5


@pytest.mark.parametrize("recipe", ["int4-weight", "int4-gptq"])
def test_int4_weights_in_onnx_runtime(wide, recipe):
    four, x = done(wide, recipe, "onnxruntime"), inputs(wide)
    assert distance(four(*x), four.network(*x)) < 1e-5
    executed = [(row.layer.weight_format, row.executed) for row in audit(four.plan, four.runner.executed())]
    assert [row for row in executed if row[0]] == [("int4", "int4")] * 3
    held = sum(len(t.raw_data) for t in four.runner.model.graph.initializer)
    weights = sum(p.numel() for p in wide.model.parameters() if p.ndim > 1)
    scales, biases = 256 * 4 + 144 * 8 + 40 * 5, 256 + 144 + 40
    assert held == (weights + 40 * 16) // 2 + 4 * (scales + biases)


def test_weights_that_onnx_runtime_keeps_packed_may_have_zero_points(wide):
    own = Quantization(format="int4", granularity="group:16", symmetric=False)
    mixed, x = done(wide, "int8-weight", "onnxruntime", Rule(layer="mid", weights=own)), inputs(wide)
    assert distance(mixed(*x), mixed.network(*x)) < 1e-5
    assert [n.op_type for n in mixed.runner.model.graph.node].count("MatMulNBits") == 1


@pytest.mark.parametrize(
    ("recipe", "weights", "words"),
    [
        ("int8-weight", {"granularity": "group:24"}, r"^mid: .* groups of 16 inputs or a multiple .* group:32 or"),
        ("int8-weight", {"format": "int3"}, "^mid: onnxruntime cannot run int3 weights"),
        ("int8-dynamic", {}, r"^mid: onnxruntime cannot run int4 weights.*`activations: {format: fp32}`"),
        ("int8-static", {}, r"^mid: onnxruntime cannot run int4 weights.*`activations: {format: fp32}`"),
    ],
    ids=["groups", "3 bits", "at run time", "calibrated"],
)
def test_what_onnx_runtime_cannot_keep_packed_is_refused(wide, recipe, weights, words):
    with pytest.raises(RecipeError, match=words):
        done(wide, recipe, "onnxruntime", Rule(layer="mid", weights=INT4.model_copy(update=weights)))


@pytest.mark.slow
def test_a_rule_gives_int4_weights_to_one_layer(wide, tmp_path):
    mixed = done(wide, "int8-weight", "openvino", Rule(layer="mid", weights=INT4))
    assert [layer.weight_format for layer in mixed.plan.layers if layer.weight_format] == ["int8", "int4", "int8"]
    assert distance(mixed(*inputs(wide)), mixed.network(*inputs(wide))) < 1e-5
    eight = done(wide, "int8-weight", "openvino")
    saved = bytes_of(eight, tmp_path) - bytes_of(mixed, tmp_path)
    assert abs(saved - (256 * 144 // 2 - 7 * 4 * 144)) < 64


@pytest.mark.slow
def test_int4_weights_of_a_layer_in_a_calibrated_network(wide):
    with pytest.raises(RecipeError, match=r"^mid: openvino cannot run int4 weights.*`activations: {format: fp32}`"):
        done(wide, "int8-static", "openvino", Rule(layer="mid", weights=INT4))
    mixed = done(wide, "int8-static", "openvino", Rule(layer="mid", weights=INT4, activations=FLOAT))
    planned = {layer.name: (layer.planned, layer.weight_format) for layer in mixed.plan.layers}
    assert (planned["up"], planned["mid"]) == (("int8", "int8"), ("fp32", "int4"))
    assert distance(mixed(*inputs(wide)), mixed.network(*inputs(wide))) < 1e-3


def test_weights_in_small_groups_are_no_match_for_openvinos_activations(wide):
    with pytest.raises(RecipeError, match=r"^mid: openvino quantizes 128 neighbours.*group:128 or channel"):
        done(wide, "int8-dynamic", "openvino", Rule(layer="mid", weights=INT4))


@pytest.mark.exact_int8
@pytest.mark.parametrize(
    "rule",
    [
        {"weights": Quantization(format="int4", granularity="group:128")},
        {"weights": Quantization(format="int4", granularity="group:128"), "activations": FLOAT},
        {"weights": INT4, "activations": FLOAT},
        {"activations": FLOAT},
    ],
    ids=["int4 at run time", "int4 in groups that could be", "int4", "int8"],
)
def test_activations_are_quantized_at_run_time_only_where_they_were_to_be(wide, rule):
    """OpenVINO's own setting is one for the whole model."""
    rules = Rule(layer="mid", **rule), Rule(layer="down", keep="fp32")
    mixed = done(wide, "int8-dynamic", "openvino", *rules)
    assert distance(mixed(*inputs(wide)), mixed.network(*inputs(wide))) < 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_and_the_last_layer_need_no_names(chain, engine):
    rules = Rule(layer="@first", activations=INT16), Rule(layer="@last", keep="fp32")
    mixed = done(chain, "int8-static", engine, *rules)
    assert [s.name for s in mixed.plan.activations() if s.spec.format.name == "int16"] == ["x"]
    planned = {layer.name: layer.planned for layer in mixed.plan.layers if layer.weight_format}
    assert planned["head"] == "fp32"
    assert planned["fc"] == "int8"


def test_first_and_last_in_a_model_of_modules():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    wide = Rule(layer="@first", activations=Quantization(format="int16", range="runtime"))
    recipe = resolve("int8-dynamic").model_copy(update={"rules": (wide, Rule(layer="@last", keep="bf16"))})
    plan = tersor.dynamic_plan(model, recipe)
    assert [str(e.activation and e.activation.format) for e in plan] == ["int16", "int8", "None"]
    assert plan[-1].weights is not None
    assert plan[-1].weights.format == "bf16"
    x = torch.randn(4, 8)
    x[:, 0] *= 100
    eight = tersor.quantize_dynamic(model[:1])
    sixteen = tersor.quantize_dynamic(model, recipe)
    with torch.no_grad():
        exact = model[0](x)
        assert distance(sixteen[0](x), exact) < distance(eight(x), exact)


def test_an_unknown_place_names_the_known_ones(chain):
    with pytest.raises(RecipeError, match=r"@lats.*nearest names: @last"):
        done(chain, "int8-static", "torch", Rule(layer="@lats", keep="fp32"))


@pytest.mark.slow
@pytest.mark.real
def test_minilm_in_4_bits(shared, tmp_path):
    from minilm import task

    minilm = task()
    four, eight = (
        tersor.compress(minilm, recipe, "openvino", report=False, progress=False)
        for recipe in ("int4-weight", "int8-weight")
    )
    batch = next(iter(minilm.calibration()))
    batch = tuple(x[:4] for x in (batch.values() if isinstance(batch, dict) else batch))
    assert distance(four(*batch), four.network(*batch)) < 1e-3
    weights = sum(p.numel() for p in minilm.model.parameters() if p.ndim > 1)
    # 4 bits a weight, and 4 bytes of scale for 32 of them.
    assert bytes_of(four, tmp_path) < 1.02 * weights * (0.5 + 4 / 32)
    assert bytes_of(four, tmp_path) < 0.65 * bytes_of(eight, tmp_path)
