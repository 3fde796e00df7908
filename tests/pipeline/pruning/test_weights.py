"""Zeros in a network from a recipe to the result: how many, where, that all later steps keep them, what is refused."""

import re
import zlib

import pytest
import torch
from torch import nn
from training.tiny_tasks import entropy, pairs, tiny_net, tiny_task

import tersor
from tersor.errors import RecipeError
from tersor.measure import Report
from tersor.network.network import WEIGHTED, title, walk
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.graph.pruning import reading
from tersor.pipeline.graph.pruning.prunable import weights_of
from tersor.pipeline.graph.pruning.reading import curvature, drawn_loss
from tersor.recipe import Recipe
from tersor.report.html import html
from tersor.report.text import text
from tersor.solvers.weights import Curvature

FLOAT = {"weights": {"format": "fp32"}, "activations": {"format": "fp32"}, "bias_correction": False}
LAYERS = ("0", "3", "7")


def run(*steps, task=None, engine="torch", report=False):
    return tersor.compress(task or tiny_task(), Recipe(steps=list(steps)), engine, report=report, progress=False,
                           threads=1)  # fmt: skip


def floats(*steps, task=None):
    """The float network behind these steps."""
    done = run(*steps, {"quantize": FLOAT}, task=task)
    return done, dict(done.network.tensors())


def weights_in(done):
    """The weights of the tiny network as they are deployed, dequantized."""
    values = {}

    def see(node, value):
        if "dequantize" in str(node.target) or node.op == "get_attr":
            values[node.name] = value

    walk(done.network, (torch.zeros(2, 3, 6, 6),), see)
    layers = [n for n in done.network.operators() if n.target in WEIGHTED]
    return {title(n): values[n.args[1].name] for n in layers}


# --- how many, and where ---


@pytest.mark.parametrize("score", ["magnitude", "random", "wanda", "taylor", "obd", "obs"])
@pytest.mark.parametrize("share", [30, 90])
def test_the_share_of_all_weights_becomes_zero(score, share):
    done, _ = floats({"prune": {"target": f"{share}% weights", "score": score, "rounds": 2}})
    (record,) = done.prunings
    assert record.share == pytest.approx(share / 100, abs=4e-3)
    assert {z.layer for z in record.zeros} == set(LAYERS)
    assert record.macs[0] == record.macs[1]


def test_only_weights_of_layers_become_zero():
    net = tiny_net()
    done, tensors = floats({"prune": {"target": "50% weights", "score": "magnitude"}}, task=tiny_task(net))
    left = {"0.weight", "3.weight", "7.weight"}
    same = {n: torch.equal(t, tensors[n]) for n, t in net.state_dict().items() if n in tensors}
    assert not any(same.pop(name) for name in left if name in same)
    assert all(same.values())
    weights = torch.cat([net.get_parameter(n).detach().reshape(-1) for n in sorted(left)])
    assert done.prunings[0].zeros[0].tensor == "0.weight"
    assert (weights != 0).all(), "the caller's model is as it was"


def test_magnitude_takes_the_smallest_of_all():
    net = tiny_net()
    _, tensors = floats({"prune": {"target": "50% weights", "score": "magnitude"}}, task=tiny_task(net))
    old = torch.cat([net.get_parameter(f"{n}.weight").detach().abs().reshape(-1) for n in LAYERS])
    new = torch.cat([weight.reshape(-1) for weight in weights_in_float(tensors)])
    assert old[new != 0].min() >= old[new == 0].max()


def weights_in_float(tensors):
    return [next(t for n, t in tensors.items() if n.startswith(f"{k}.weight")) for k in LAYERS]


def test_patterns_of_layers_and_a_limit_for_each():
    done, _ = floats({"prune": {"target": "50% weights", "score": "magnitude", "layers": ["3", "7"], "keep": "7"}})
    assert [z.layer for z in done.prunings[0].zeros] == ["3"]
    done, _ = floats({"prune": {"target": "60% weights", "score": "obd", "most": 0.7}})
    assert all(z.zeros <= 0.7 * z.weights + 1 for z in done.prunings[0].zeros)


def test_a_pattern_of_neighbours():
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
    data = [(torch.rand(8, 4, 6, 6, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    task = tersor.Task("four", net, (torch.zeros(2, 4, 6, 6),), lambda: data)
    done, tensors = floats({"prune": {"target": "2:4 weights", "score": "obs"}}, task=task)
    conv, linear = tensors["0.weight"], tensors["3.weight"]
    assert ((conv.movedim(1, -1).reshape(-1, 4) != 0).sum(1) == 2).all()
    assert ((linear.reshape(-1, 4) != 0).sum(1) == 2).all()
    assert done.prunings[0].target == "2:4 weights"


def test_recurrent_layers_and_products_lose_weights_and_shared_embeddings_do_not():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
            self.out, self.product = nn.Linear(8, 20, bias=False), nn.Parameter(torch.randn(8, 8))
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(self.lstm(self.embed(x))[0] @ self.product)

    torch.manual_seed(0)
    net = Net().eval()
    network = captured(tersor.Task("lm", net, (torch.zeros(2, 5, dtype=torch.long),), list))
    found, left = weights_of(network)
    assert {w.layer for w in found.values()} == {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "product"}
    assert found["product"].inputs == 0
    assert list(left.values()) == ["an operator that is no layer reads its weight, too"]
    data = [(torch.randint(20, (4, 5), generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    task = tersor.Task("lm", net, (torch.zeros(2, 5, dtype=torch.long),), lambda: data)
    done, tensors = floats({"prune": {"target": "50% weights", "score": "obs", "rounds": 1}}, task=task)
    assert done.prunings[0].share == pytest.approx(0.5, abs=1e-2)
    assert (tensors["lstm.weight_hh_l0"] == 0).any()
    done, _ = floats({"prune": {"target": "50% weights", "score": "wanda", "rounds": 1}}, task=task)
    assert {layer for layer, why in done.prunings[0].whole.items() if "the score cannot rate it" in why} == {
        "lstm.weight_ih_l0", "lstm.weight_hh_l0",
    }  # fmt: skip


def test_a_weight_that_two_layers_share_counts_once():
    shared = nn.Linear(12, 12)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(12, 4)).eval()
    data = [(torch.rand(8, 12, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    task = tersor.Task("shared", net, (torch.zeros(2, 12),), lambda: data, train=lambda: data)
    for step in ({"prune": {"target": "50% weights", "score": "obd"}}, {"train": {"sparsity": 0.5}}):
        done, _ = floats(step, task=task)
        assert [z.weights for z in done.prunings[0].zeros] == [144, 48]
        assert done.prunings[0].share == pytest.approx(0.5, abs=5e-3)


# --- what scores read ---


def test_the_fisher_matrix_is_that_of_drawn_classes():
    """Its diagonal against the exact expectation over all classes."""
    task = tiny_task(tiny_net(3))
    network = captured(task)
    found = Curvature(frozenset({"squares"}))
    x = pairs(1, rows=64, seed=3)[0][0]
    curvature(network, ["7.weight"], [(x,)] * 60, found, 0)
    weight = task.model.get_submodule("7").weight
    exact = torch.zeros_like(weight)
    for sample in x:
        out = task.model(sample[None])[0].log_softmax(0)
        for k, p in enumerate(out.detach().exp()):
            (g,) = torch.autograd.grad(out[k], weight, retain_graph=True)
            exact += p * g.square() / len(x)
    assert float((found.of("7.weight")["squares"] - exact).norm() / exact.norm()) < 0.1


def test_outputs_that_are_no_classes_count_as_means():
    out = torch.randn(3, 2, 4, requires_grad=True)
    drawn_loss([out], torch.Generator().manual_seed(0)).backward()
    assert out.grad.isfinite().all()
    assert (out.grad != 0).all()


def trained_task():
    """A tiny network that has learned something, with its data."""
    data = pairs(6, rows=32)
    data = [(x, (x.mean((2, 3)).argmax(1) + (x[:, 0, 0, 0] > 0.5)).clamp(max=3)) for x, _ in data]
    torch.manual_seed(0)
    net = tiny_net().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(25):
        for batch in data:
            optimizer.zero_grad()
            entropy(net, batch).backward()
            optimizer.step()
    task = tersor.Task(
        "learned", net.eval(), (torch.zeros(2, 3, 6, 6),), lambda: [(x,) for x, _ in data], train=lambda: data,
        loss=entropy, validation=lambda: data[:2],
    )  # fmt: skip
    return task, data


def test_obs_raises_the_loss_less_than_obd_and_that_less_than_magnitude_and_chance():
    task, data = trained_task()

    def loss(score, rounds=2):
        done, _ = floats(
            {"prune": {"target": "60% weights", "score": score, "rounds": rounds}}, task=task
        )  # fmt: skip
        return sum(float(nn.functional.cross_entropy(done(x), y)) for x, y in data) / len(data)

    found = {score: loss(score) for score in ("obs", "obd", "magnitude", "random")}
    assert found["obs"] < found["obd"] < found["random"]
    assert found["obs"] < found["magnitude"]


def test_the_loops_of_obd_and_obs_are_recipes():
    task, _ = trained_task()
    for score in ("obd", "obs"):
        done = run(
            {"prune": {"target": "50% weights", "score": score, "rounds": 1}}, {"train": {"epochs": 1}},
            {"prune": {"target": "80% weights", "score": score, "rounds": 1}}, {"train": {"epochs": 1}},
            {"quantize": "int8-static"}, task=task,
        )  # fmt: skip
        assert [round(p.share, 2) for p in done.prunings] == [0.5, 0.8]
        values = weights_in(done)
        total = sum(v.numel() for v in values.values())
        assert sum(int((v == 0).sum()) for v in values.values()) / total >= 0.79


# --- later steps keep them ---


FORMATS = {
    "int8": {"weights": {"format": "int8"}},
    "asymmetric": {"weights": {"format": "int4", "symmetric": False}},
    "gptq": {"weights": {"format": "int4", "solver": "gptq"}},
    "obq": {"weights": {"format": "int4", "solver": "obq"}},
    "adaround": {"weights": {"format": "int4", "solver": "adaround"}},
    "hqq": {"weights": {"format": "int4", "symmetric": False, "solver": "hqq"}},
    "mse": {"weights": {"format": "int4", "range": "mse"}},
    "ternary": {"weights": {"format": "ternary"}},
}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_zeros_are_zero_when_quantized(name):
    prune = {"prune": {"target": "70% weights", "score": "obd", "rounds": 1}}
    plain, tensors = floats(prune)
    before = dict(zip(LAYERS, (t == 0 for t in weights_in_float(tensors)), strict=True))
    done = run(prune, {"quantize": FORMATS[name]})
    for layer, value in weights_in(done).items():
        assert not value[before[layer]].any(), layer
    assert plain.prunings[0].zeros == done.prunings[0].zeros


@pytest.mark.parametrize("quantizers", ["lsq", "auto", {"weights": "dorefa"}])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_zeros_survive_training_with_quantizers(quantizers, weights):
    done = run(
        {"train": {"epochs": 2, "sparsity": 0.7}}, {"quantize": {"weights": {"format": weights, "solver": "gptq"}}},
        {"train": {"epochs": 2, "quantizers": quantizers, "rate": 0.01}},
    )  # fmt: skip
    (record,) = done.prunings
    assert record.share == pytest.approx(0.7, abs=4e-3)
    assert done.subject.trainings[1].kept
    counts = {z.layer: z.zeros for z in record.zeros}
    for layer, value in weights_in(done).items():
        assert int((value == 0).sum()) >= counts[layer]


@pytest.mark.parametrize("quantizer", ["twn", "ttq", "projected"])
def test_zeros_survive_ternary_training(quantizer):
    done = run(
        {"prune": {"target": "80% weights", "score": "magnitude"}}, {"quantize": {"weights": {"format": "ternary"}}},
        {"train": {"epochs": 2, "quantizers": {"weights": quantizer}, "rate": 0.01}},
    )  # fmt: skip
    counts = {z.layer: z.zeros for z in done.prunings[0].zeros}
    for layer, value in weights_in(done).items():
        assert int((value == 0).sum()) >= counts[layer]


def test_zeros_that_come_while_quantizers_train():
    done = run({"quantize": "int8-static"}, {"train": {"epochs": 4, "sparsity": {"share": 0.8, "every": 1}}})
    assert done.prunings[0].share == pytest.approx(0.8, abs=4e-3)
    values = weights_in(done)
    assert sum(int((v == 0).sum()) for v in values.values()) >= 0.79 * sum(v.numel() for v in values.values())


def test_training_behind_a_prune_keeps_its_zeros():
    done, tensors = floats({"prune": {"target": "70% weights", "score": "obd"}}, {"train": {"epochs": 2, "rate": 0.01}})
    assert done.subject.trainings[0].kept
    counts = {z.layer: z.zeros for z in done.prunings[0].zeros}
    for layer, weight in zip(LAYERS, weights_in_float(tensors), strict=True):
        assert int((weight == 0).sum()) == counts[layer]


def test_zeros_are_in_the_network_that_openvino_runs():
    pytest.importorskip("openvino")
    done = run(
        {"prune": {"target": "70% weights", "score": "obd", "rounds": 1}}, {"quantize": "int8-static"},
        engine="openvino",
    )  # fmt: skip
    counts = {z.layer: z.zeros for z in done.prunings[0].zeros}
    for layer, value in weights_in(done).items():
        assert int((value == 0).sum()) >= counts[layer]
    stored = [op.data for op in done.runner.model.get_ordered_ops() if op.get_type_name() == "Constant"]
    for layer, value in weights_in(done).items():
        own = [codes for codes in stored if codes.dtype == "int8" and codes.size == value.numel()]
        assert max(int((codes == 0).sum()) for codes in own) >= counts[layer], layer


def test_codes_of_a_sparse_network_compress():
    def packed(*steps):
        done = run(*steps, {"quantize": "int8-static"})
        return len(zlib.compress(b"".join(t.numpy().tobytes() for n, t in done.network.tensors() if "codes" in n)))

    assert packed({"prune": {"target": "90% weights", "score": "magnitude"}}) < 0.5 * packed()


# --- the report ---


def test_the_report_shows_the_zeros_of_every_layer():
    done = run(
        {"prune": {"target": "50% weights", "score": "magnitude"}}, {"train": {"epochs": 1, "sparsity": 0.8}},
        {"quantize": "int8-static"}, report=True,
    )  # fmt: skip
    report = done.report
    first, second = report.prunings
    assert {z.layer for z in first.zeros} == set(LAYERS)
    assert sum(z.zeros for z in second.zeros) == round(0.8 * sum(z.weights for z in second.zeros))
    assert (first.target, second.target) == ("50% weights", "80% weights")
    for shown in (text(report), html(report)):
        assert "50.0 % of" in shown
        assert f"{100 * done.prunings[1].share:.1f} % of" in shown
    assert Report.model_validate_json(report.model_dump_json()) == report


# --- what is refused ---


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"prune": {"target": "50% weights", "layers": "9"}}, "no layer with weights is called '9'"),
        ({"prune": {"target": "2:4 weights", "keep": "conv*"}}, "no layer with weights is called 'conv*'"),
        ({"prune": {"target": "50% weights", "keep": "*"}}, "no weight is left that may become zero"),
        ({"prune": {"target": "2:4 weights"}}, "0: 3 inputs are no multiple of 4, which 2:4 needs"),
        ({"prune": {"target": "99.9% weights"}}, "99.9% of the weights cannot go"),
        ({"prune": {"target": "50% weights", "multiple": 8}}, "`multiple` is for channels"),
        ({"prune": {"target": "50% weights", "repair": "shift"}}, "`repair` is for channels"),
        ({"train": {"sparsity": "2:4"}}, "0: 3 inputs are no multiple of 4, which 2:4 needs"),
        ({"train": {"sparsity": {"share": 0.5, "layers": "9"}}}, "no layer with weights is called '9'"),
        ({"train": {"sparsity": 0.999}}, "99.9% of the weights cannot go"),
        ({"train": {"sparsity": {"share": 0.999, "scope": "layer"}}}, "leaves none"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(step, words):
    with pytest.raises(RecipeError, match=re.escape(words)):
        run({"train": {"epochs": 500}}, step, {"quantize": FLOAT})


TARGETS = ("100% weights", "0% weights", "4:2 weights", "2:2 weights", "2x weights", "0:4 weights")


@pytest.mark.parametrize("target", TARGETS)
def test_targets_that_mean_nothing_are_refused(target):
    with pytest.raises(ValueError, match="target"):
        Recipe(steps=[{"prune": {"target": target}}, {"quantize": FLOAT}])


def test_scores_of_channels_are_not_for_weights():
    with pytest.raises(ValueError, match="unknown score 'fisher'"):
        Recipe(steps=[{"prune": {"target": "50% weights", "score": "fisher"}}, {"quantize": FLOAT}])
    with pytest.raises(ValueError, match="unknown score 'obd'"):
        Recipe(steps=[{"prune": {"target": "2x macs", "score": "obd"}}, {"quantize": FLOAT}])


def test_fewer_zeros_than_there_are_is_refused():
    prune = {"target": "50% weights", "score": "magnitude"}
    with pytest.raises(RecipeError, match=r"50(\.\d+)?% of the weights are zero already: ask for more"):
        floats({"prune": prune}, {"prune": {**prune, "target": "30% weights"}})


def test_channels_behind_zeros_would_fill_them():
    steps = {"prune": {"target": "50% weights"}}, {"prune": {"target": "2x macs"}}
    with pytest.raises(RecipeError, match=r"repairs weights, and would fill the zeros of .*prune channels first"):
        floats(*steps)
    done, _ = floats({"prune": {"target": "1.2x macs", "rounds": 1}}, steps[0])
    assert done.prunings[1].share == pytest.approx(0.5, abs=1e-2)


def test_a_frozen_layer_that_is_named_is_refused():
    net = tiny_net()
    net.get_submodule("3").weight.requires_grad_(False)
    step = {"train": {"sparsity": {"share": 0.5, "layers": ["3"]}}}
    with pytest.raises(RecipeError, match="the weights of 3 are frozen"):
        floats(step, task=tiny_task(net))
    done, _ = floats({"train": {"sparsity": 0.5}}, task=tiny_task(net))
    assert done.prunings[0].share < 0.5


def test_zeros_have_no_binary_code():
    with pytest.raises(RecipeError, match="binary has no code for zero, so its zeros cannot stay"):
        run({"prune": {"target": "50% weights", "score": "magnitude"}}, {"quantize": {"weights": {"format": "binary"}}})


def test_scores_without_gradients_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 6)

        def forward(self, x):
            return self.a(x).argmax(1)

    data = [(torch.rand(4, 4),)]
    task = tersor.Task("index", Net().eval(), (torch.zeros(2, 4),), lambda: data)
    with pytest.raises(RecipeError, match="no gradients to score by; take the score magnitude or wanda"):
        floats({"prune": {"target": "50% weights", "score": "obd"}}, task=task)


def test_a_fisher_matrix_that_does_not_fit_is_refused_with_a_size_that_does(monkeypatch):
    monkeypatch.setattr(reading, "MEMORY", 20_000)
    with pytest.raises(RecipeError, match=r"ask for smaller blocks, such as `score: \{obs: \{block: \d+\}\}`"):
        floats({"prune": {"target": "50% weights", "score": "obs"}})
