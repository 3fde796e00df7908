"""Networks and data that once gave a wrong result, or an error of Python's own."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tersor
from tersor.errors import CalibrationError
from tersor.network.capture import capture
from tersor.network.groups import checked, find
from tersor.recipe import Prune, Quantize, Recipe

FLOAT = Quantize(weights={"format": "fp32"}, activations={"format": "fp32"}, bias_correction=False)


def run(net, example, batches, dynamic=None, **step):
    task = tersor.Task("t", net.eval(), (example,), lambda: ((b,) for b in batches), dynamic=dynamic)
    recipe = Recipe(steps=(Prune(**step), FLOAT), name="p")
    return tersor.compress(task, recipe, "torch", report=False, progress=False, threads=1)


def drawn(*shape, count=4):
    return [torch.randn(*shape, generator=torch.Generator().manual_seed(k)) for k in range(count)]


class Net(nn.Module):
    """Parts by name, and a function of them and the input."""

    def __init__(self, of, **parts):
        super().__init__()
        self.of = of
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.of(self, x)


def mlp(*sizes):
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def kernel_attention(s, x):
    q, k = F.elu(s.q(x)) + 1, F.elu(s.k(x)) + 1
    return s.o(q @ (k.transpose(1, 2) @ s.v(x)))


@pytest.mark.parametrize(
    "of", [lambda s, x: kernel_attention(s, x.log()), lambda s, x: kernel_attention(s, x).argmax(-1)]
)
def test_a_wrong_group_is_found_out_behind_a_logarithm_and_in_front_of_labels(of):
    parts = {n: nn.Linear(6, 8) for n in "qkv"}
    network = capture(Net(of, **parts, o=nn.Linear(8, 3)).eval(), (torch.rand(2, 5, 6) + 0.01,))
    found = checked(find(network))
    assert all(("q.weight", 0) not in g.sites for g in found.groups)
    assert any(("o.weight", 1) in g.sites for g in found.groups)


def test_a_network_without_a_finite_value_loses_nothing():
    network = capture(Net(lambda s, x: s.m(x) / 0.0 * 0.0, m=mlp(4, 8, 3)).eval(), (torch.zeros(2, 4),))
    assert len(checked(find(network)).groups) == 1  # the layers in front are finite, and are compared
    spoilt = capture(Net(lambda s, x: s.m(x * 0.0 / 0.0), m=mlp(4, 8, 3)).eval(), (torch.zeros(2, 4),))
    assert checked(find(spoilt)).groups == ()


def test_a_product_with_factors_is_not_repaired_as_one_without():
    net = Net(lambda s, x: torch.addmm(s.c, F.relu(s.a(x)), s.w, beta=0.5, alpha=3.0), a=nn.Linear(4, 16),
              w=nn.Parameter(torch.randn(16, 5)), c=nn.Parameter(torch.randn(5)))  # fmt: skip
    done = run(net, torch.randn(2, 4), drawn(64, 4), target="20% channels", rounds=1, score="fisher")
    x = drawn(64, 4, count=9)[-1]
    assert (done(x) - net(x)).square().mean() < 0.3 * net(x).var()


@pytest.mark.parametrize("score", ["obs", "fisher", "taylor"])
def test_single_samples_of_a_single_output_score_as_batches_do(score):
    net = mlp(4, 16, 1)
    with torch.no_grad():
        net[2].weight[:, 8:] *= 1e-3
    step = {"target": "50% channels", "rounds": 1, "score": score, "repair": "none"}
    done = run(net, torch.randn(2, 4), drawn(1, 4, count=64), **step)
    x = drawn(50, 4, count=1)[0]
    assert (done(x) - net(x)).abs().max() < 0.01


@pytest.mark.parametrize("score", ["obs", "fisher", "magnitude"])
def test_values_that_are_not_finite_are_named(score):
    net = Net(lambda s, x: s.m(x.log()), m=mlp(4, 16, 8, 3))
    batches = [torch.rand(8, 4) - (0.2 if k == 1 else 0) for k in range(4)]
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        run(net, torch.rand(4, 4), batches, target="50% channels", rounds=1, score=score)


@pytest.mark.parametrize(("rounds", "size", "multiple"), [(1, 16, 1), (20, 16, 1), (50, 16, 1), (8, 6, 1), (10, 64, 8)])
def test_a_share_is_reached_in_any_number_of_rounds(rounds, size, multiple):
    step = {"target": "50% channels", "rounds": rounds, "multiple": multiple}
    done = run(mlp(4, size, 5), torch.randn(2, 4), drawn(16, 4), **step)
    assert done.prunings[0].widths[0].after == size // 2


def test_all_but_one_of_two_in_more_rounds_than_that():
    done = run(mlp(4, 2, 5), torch.randn(2, 4), drawn(16, 4), target="99% channels", rounds=3, most=0.99)
    assert done.prunings[0].widths[0].after == 1


@pytest.mark.parametrize("score", ["magnitude", "obs"])
def test_positions_of_a_varying_length_stay(score):
    net = Net(lambda s, x: s.o(s.i(x) + s.p[:, : x.size(1)] + s.b(F.relu(s.a(s.i(x))))),
              p=nn.Parameter(torch.randn(1, 64, 8)), i=nn.Linear(4, 8), a=nn.Linear(8, 16), b=nn.Linear(16, 8),
              o=nn.Linear(8, 3))  # fmt: skip
    step = {"target": "50% channels", "score": score, "rounds": 1}
    done = run(net, torch.randn(2, 8, 4), drawn(8, 8, 4), {"x": {1: "length"}}, **step)
    assert dict(done.network.tensors())["p"].shape[1] == 64
    for length in (1, 6, 12):
        assert done(torch.randn(2, length, 4)).shape == (2, length, 3)


@pytest.mark.parametrize("score", ["magnitude", "random", "obs", "fisher"])
def test_numbers_and_masks_are_no_channels(score):
    ids = Net(lambda s, x: s.b(F.relu(s.a(s.t(x) + s.e(s.ids[:, : x.size(1)])))), t=nn.Embedding(20, 8),
              e=nn.Embedding(64, 8), a=nn.Linear(8, 16), b=nn.Linear(16, 3))  # fmt: skip
    ids.register_buffer("ids", torch.arange(64)[None])
    batches = [torch.randint(0, 20, (8, 8)) for _ in range(4)]
    done = run(ids, batches[0][:2], batches, target="30% channels", rounds=1, score=score)
    assert all("ids" not in w.layers for w in done.prunings[0].widths)


def test_sizes_that_hang_on_values():
    def of(s, x):
        h, mask = F.relu(s.a(x)), x[..., 0] > 0
        return s.o(h.masked_scatter(mask[..., None], F.relu(s.b(h[mask]))))

    net = Net(of, a=nn.Linear(4, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8), o=mlp(8, 8, 3))
    done = run(net, torch.randn(2, 5, 4), drawn(8, 5, 4), target="30% channels", rounds=1, score="magnitude")
    assert done(torch.randn(2, 5, 4)).shape == (2, 5, 3)


@pytest.mark.parametrize("tokens", [6, 8])
def test_a_batchnorm_over_tokens_is_not_folded_into_channels(tokens):
    """Without pruning, too: it was folded silently where there were as many tokens as channels."""
    net = Net(lambda s, x: s.o(F.relu(s.n(s.b(F.relu(s.a(x)))))), a=nn.Linear(4, 16), b=nn.Linear(16, 8, bias=False),
              n=nn.BatchNorm1d(tokens), o=nn.Linear(8, 3))  # fmt: skip
    nn.init.uniform_(net.n.running_mean), nn.init.uniform_(net.n.running_var, 0.5, 2), nn.init.normal_(net.n.bias)
    x = torch.randn(4, tokens, 4)
    task = tersor.Task("t", net.eval(), (x[:2],), lambda: [(x,)])
    plain = tersor.compress(task, Recipe(steps=(FLOAT,)), "torch", report=False, progress=False)
    torch.testing.assert_close(plain(x), net(x), atol=1e-5, rtol=1e-5)
    done = run(net, x[:2], drawn(32, tokens, 4), target="20% channels", rounds=1, layers="a")
    assert (done(x) - net(x)).square().mean() < 0.2 * net(x).var()


@pytest.mark.parametrize("mean", [lambda s: s.m, lambda s: s.m * 1.5])
def test_a_batchnorm_of_computed_values(mean):
    def of(s, x):
        y = s.c(F.relu(s.i(x)))
        return F.relu(F.batch_norm(y, mean(s), s.v, 1 + s.g)).mean((2, 3))

    net = Net(of, i=nn.Conv2d(3, 8, 3), c=nn.Conv2d(8, 8, 3, bias=False), g=nn.Parameter(torch.randn(8)))
    net.register_buffer("m", torch.randn(8))
    net.register_buffer("v", torch.rand(8) + 0.5)
    done = run(net, torch.randn(2, 3, 8, 8), drawn(8, 3, 8, 8), target="30% channels", rounds=1)
    assert done(torch.randn(3, 3, 8, 8)).shape == (3, 8)


def test_a_squeeze_takes_no_dimension_that_is_left_with_one():
    net = Net(lambda s, x: s.o(F.relu(s.p(s.a(x))).squeeze()), a=nn.Conv2d(3, 8, 3), p=nn.AdaptiveAvgPool2d(1),
              o=nn.Linear(8, 3))  # fmt: skip
    done = run(net, torch.randn(4, 3, 6, 6), drawn(8, 3, 6, 6), target="90% channels", most=0.95, rounds=1)
    assert done.prunings[0].widths[0].after == 1
    assert done(torch.randn(4, 3, 6, 6)).shape == (4, 3)


def test_fewer_samples_are_told(monkeypatch):
    monkeypatch.setattr("tersor.pipeline.graph.pruning.step.MEMORY", 4096.0)
    net, batches = mlp(4, 16, 3), drawn(8, 4)
    task = tersor.Task("t", net.eval(), (torch.randn(2, 4),), calibration=lambda: ((b,) for b in batches))
    recipe = Recipe(steps=(Prune(target="30% channels", rounds=1), FLOAT), name="p")
    notes = tersor.compress(task, recipe, "torch", report=False, progress=False).prunings[0].notes
    assert "pruning read 8 of 512 samples" in notes[0]
