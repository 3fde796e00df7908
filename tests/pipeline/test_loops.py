"""Pruning a whole network in steps: what is removed, what makes up for it, and what is said about it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.errors import CalibrationError, RecipeError
from tersor.pipeline.modules.eager import fishers, observe, prunable
from tersor.pipeline.modules.loops import PrunedModel, prune_iteratively
from tersor.solvers import PRUNERS


class Net(nn.Module):
    """A convolution, one in groups, and two linear layers; layers of very different use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.grouped = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.wide, self.head = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = self.relu(self.norm(self.grouped(self.relu(self.first(x))))).mean((2, 3))
        return self.head(F.relu(self.wide(x)))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def inputs():
    smooth = nn.AvgPool2d(3, 1, 1)
    return [(smooth(drawn(32, 4, 6, 6, seed=k)),) for k in range(2)]


@pytest.fixture(scope="module")
def labelled(net, inputs):
    with torch.no_grad():
        return [(x, net(x).argmax(1)) for (x,) in inputs]


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def distance(net, pruned, inputs):
    with torch.no_grad():
        return sum(float((pruned.model(x) - net(x)).square().sum()) for (x,) in inputs)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*PRUNERS, "obs"])
@pytest.mark.parametrize("judged", [False, True], ids=["outputs", "loss"])
def test_every_method_leaves_what_was_asked_and_the_model_as_it_was(net, inputs, labelled, method, judged):
    before = copy.deepcopy(net.state_dict())
    data = labelled if judged else inputs
    done = prune_iteratively(net, data, "60%", method, loss=cross_entropy if judged else None)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert 0.6 <= done.sparsity + 1e-3 <= 0.65
    zeros = sum(int((p == 0).sum()) for n, p in done.model.named_parameters() if n.endswith("weight") and p.ndim > 1)
    assert zeros == round(sum(r.sparsity * r.weights for r in done.layers))
    assert [r.name for r in done.layers] == ["first", "grouped", "wide", "head"]
    assert all(r.error > 0 for r in done.layers)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in done.model.modules())


def test_the_second_order_is_nearer_than_magnitude(net, inputs):
    error = {m: distance(net, prune_iteratively(net, inputs, "50%", m), inputs) for m in ("magnitude", "obs")}
    assert error["obs"] < 0.3 * error["magnitude"]


def test_a_budget_that_is_divided_is_better_than_the_same_share_of_every_layer(net, inputs):
    divided = prune_iteratively(net, inputs, "60%", "magnitude")
    even = copy.deepcopy(net)
    for layer in prunable(even)[0]:
        w = layer.weight
        layer.put(w * (w.abs() > w.abs().flatten().kthvalue(round(0.6 * w.numel())).values))
    assert distance(net, divided, inputs) < distance(net, PrunedModel(even, (), {}), inputs)
    shares = [r.sparsity for r in divided.layers]
    assert max(shares) - min(shares) > 0.1


def test_with_a_loss_layers_that_it_does_not_feel_go_first(inputs):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.quiet, self.loud = nn.Linear(24, 8), nn.Linear(24, 8)

        def forward(self, x):
            return 0.01 * self.quiet(x) + self.loud(x)

    data = [(drawn(128, 24), drawn(128, 8, seed=1))]

    def squared(model, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    for method in ("exactobs", "obs", "obd", "magnitude"):
        quiet, loud = prune_iteratively(Two(), data, "50%", method, loss=squared).layers
        assert quiet.sparsity > 0.9, method
        assert loud.sparsity < 0.1, method
    quiet, loud = prune_iteratively(Two(), [(x,) for x, _ in data], "50%", "obs").layers
    assert abs(quiet.sparsity - loud.sparsity) < 0.3


def test_gradients_are_those_of_every_single_sample(net, labelled):
    model = copy.deepcopy(net)
    for p in model.parameters():
        p.requires_grad_(False)
    layers, _ = prunable(model)
    found = fishers(model, layers, iter(labelled), cross_entropy, 1, 40)["wide"].flatten()
    assert not any(p.requires_grad for p in model.parameters()), "frozen weights stay frozen"
    x, y = (torch.cat(parts)[:40] for parts in zip(*labelled, strict=True))
    theirs = torch.func.vmap(
        torch.func.grad(lambda w, x, y: F.cross_entropy(torch.func.functional_call(net, w, (x[None],)), y[None])),
        in_dims=(None, 0, 0),
    )(dict(net.named_parameters()), x, y)["wide.weight"]
    assert torch.allclose(found, theirs.flatten(1).square().mean(0), rtol=1e-3, atol=1e-9)


def test_what_an_output_costs_is_the_sum_of_squares_of_its_gradient(net, labelled):
    layers, _ = prunable(net)
    costs = observe(net, layers, labelled, cross_entropy, True).costs
    bias = {n: torch.zeros_like(net.get_parameter(f"{n}.bias")) for n in ("wide", "head")}
    for x, y in ((x[k : k + 1], y[k : k + 1]) for x, y in labelled for k in range(32)):
        gradients = torch.autograd.grad(cross_entropy(net, (x, y)), [net.get_parameter(f"{n}.bias") for n in bias])
        for n, g in zip(bias, gradients, strict=True):
            bias[n] += g.square() / 64
    # A linear layer's bias sees the gradient of its output, one position a sample.
    assert all(torch.allclose(costs[n], g, rtol=1e-3) for n, g in bias.items())


@pytest.mark.slow
def test_steps_with_retraining_beat_one_shot_and_the_removed_stay_zero(net, inputs):
    seen = []
    with torch.no_grad():
        targets = [(x, net(x)) for (x,) in inputs]

    def retrain(model):
        weight = model.wide.weight
        before = weight == 0
        seen.append(float(before.float().mean()))
        adam = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(25):
            for x, y in targets:
                adam.zero_grad()
                F.mse_loss(model(x), y).backward()
                adam.step()
        assert bool((weight[before] == 0).all()), "momentum and decay do not move what has no gradient"
        model.train()

    shot = prune_iteratively(net, inputs, "80%", "obd")
    done = prune_iteratively(net, inputs, "80%", "obd", steps=3, retrain=retrain)
    assert len(seen) == 3
    assert seen == sorted(seen)
    assert done.sparsity >= 0.8 - 1e-6
    assert not done.model.training
    assert distance(net, done, inputs) < 0.5 * distance(net, shot, inputs)
    assert not any(p._backward_hooks for p in done.model.parameters())


def test_patterns_hold_for_every_layer(net, inputs):
    done = prune_iteratively(net, inputs, "2:4", "obs")
    for name in ("first", "wide", "head"):
        zeros = done.model.get_parameter(f"{name}.weight") == 0
        assert (zeros.unflatten(1, (-1, 4)).sum(2) == 2).all(), name


def test_a_skipped_layer_has_a_reason():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.mix(self.embed(ids)))

    done = prune_iteratively(Tied(), [(torch.arange(12).reshape(3, 4),)], "50%")
    assert [r.name for r in done.layers] == ["mix"]
    assert set(done.skip_reasons) == {"embed", "head"}
    assert done.skip_reasons["head"] == "another layer reads the same weight"
    assert done.left is done.skip_reasons, "its former name"


def test_bad_input(net, inputs, labelled):
    with pytest.raises(RecipeError, match="method 'obc' is unknown"):
        prune_iteratively(net, inputs, "50%", "obc")
    with pytest.raises(RecipeError, match=r"skip: rule \(layer: haed\) matches no layer .* nearest names: head"):
        prune_iteratively(net, inputs, "50%", skip=["haed"])
    with pytest.raises(RecipeError, match="2:4 in 2 steps"):
        prune_iteratively(net, inputs, "2:4", steps=2)
    with pytest.raises(RecipeError, match="with a loss prunes without structure"):
        prune_iteratively(net, labelled, "50% per row", loss=cross_entropy)
    with pytest.raises(RecipeError, match="layer first: 4 inputs are no multiple of 8"):
        prune_iteratively(net, inputs, "4:8", "magnitude")
    with pytest.raises(CalibrationError, match="layer first was not called on any batch"):
        prune_iteratively(net, [], "50%")
    with pytest.raises(CalibrationError, match="gave nan at sample 32"):
        prune_iteratively(net, labelled, "50%", loss=lambda model, batch: cross_entropy(model, batch) * torch.nan)
    with pytest.raises(CalibrationError, match="layer first does not change the loss"):
        prune_iteratively(net, labelled, "50%", loss=lambda model, batch: 0 * cross_entropy(model, batch))
    with pytest.raises(CalibrationError, match=r"^first: .* NaN or infinite"):
        prune_iteratively(net, [(torch.full((2, 4, 6, 6), torch.inf),)], "50%")
