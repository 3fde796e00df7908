"""Every entry of REWRITES keeps the promises of a rewrite, on every network of the zoo."""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from parts import Lambda, distance, draw, flat, small, warmed
from torch import nn
from zoo import NETWORKS, PICTURE, Builder

from tersor.errors import RewriteError
from tersor.network.calibrate import calibrate
from tersor.network.capture import capture
from tersor.network.network import WEIGHTED, add_tensor, aten, finish
from tersor.network.rewrites import REWRITES
from tersor.network.rewrites.smooth import smoothable
from tersor.network.verify import rewritten, verify

MORE: dict[str, Builder] = {
    "lstm": lambda: (
        Lambda(lambda m, x: m.a(m.rnn(x)[0]), rnn=nn.LSTM(5, 6, 2, batch_first=True), a=nn.Linear(6, 2)),
        (4, 5),
    ),
    "gru": lambda: (Lambda(lambda m, x: m.rnn(x)[0], rnn=nn.GRU(5, 6, bidirectional=True, batch_first=True)), (4, 5)),
    "padded": lambda: (small(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(16)), PICTURE),
    "joined": lambda: (
        Lambda(
            lambda m, x: m.c(torch.cat([torch.cat([m.a(x), m.b(x)], 1), x], 1).relu()),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(3, 4, 1),
            c=nn.Conv2d(11, 2, 1),
        ),
        PICTURE,
    ),
}
EVERY = {**NETWORKS, **MORE}
# A network that the rewrite changes.
CHANGES = {
    "absorb_bias": "vgg",
    "decompose": "efficientnet",
    "equalize": "vgg",
    "fold_batchnorm": "unet",
    "fold_constants": "weight_norm",
    "fold_pad": "padded",
    "global_pool": "padded",
    "hoist_activations": "joined",
    "smooth": "vit",
    "unroll": "lstm",
}
FOLDS = ("fold_constants", "fold_batchnorm", "fold_pad", "hoist_activations")


@cache
def networks(name):
    """The captured network, the same with its layers folded, and inputs."""
    torch.manual_seed(0)
    model, shape = EVERY[name]()
    model = warmed(model, shape)
    captured = capture(model, (torch.zeros(1, *shape),))
    folded = captured
    for fold in FOLDS:
        folded = REWRITES[fold]()(folded)
    return (captured, folded), draw((shape,), 6, 5)


def statistics_of(network, inputs, rewrite):
    """What the rewrite is told: of the inputs of linear layers, channels last, or of the outputs of all layers."""
    last = list(smoothable(network)) if rewrite == "smooth" else []
    names = last or [n.name for n in network.operators() if n.target in WEIGHTED]
    return calibrate(network, names, [inputs], channels_last=last).statistics


def content(network):
    """All that a network is, to be compared."""
    nodes = [(n.name, n.op, str(n.target), str(n.args), str(n.kwargs)) for n in network.graph.nodes]
    return nodes, {name: t.clone() for name, t in network.tensors()}


def same(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(t, b[1][k]) for k, t in a[1].items())


def check(factory, network, inputs, rewrite=""):
    """Hold one rewrite to its promises on one network; whether it changed anything."""
    statistics = statistics_of(network, inputs, rewrite)
    before, output = content(network), flat(network(*inputs))
    made = rewritten(network, factory(), statistics)
    assert same(content(network), before), "a rewrite leaves its input as it is"
    for old, new in zip(output, flat(made(*inputs)), strict=True):
        assert old.shape == new.shape
        assert distance(new, old) <= 1e-5, "a rewrite leaves the output as it is"
    if factory().idempotent:
        assert same(content(factory()(made, statistics)), content(made)), "a second time changes nothing"
    return not same(content(made), before)


# Those that a rewrite is known to change run with the fast tests.
QUICK = set(CHANGES.values())


@pytest.mark.parametrize(
    "network", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EVERY]
)
def test_every_rewrite_keeps_its_promises(network):
    starts, inputs = networks(network)
    for start in starts:
        for name, factory in REWRITES.items():
            check(factory, start, inputs, name)


@pytest.mark.parametrize("name", REWRITES)
def test_every_rewrite_changes_some_network(name):
    starts, inputs = networks(CHANGES[name])
    assert any(check(REWRITES[name], start, inputs, name) for start in starts)


# --- the suite itself finds what is wrong ---


@dataclass(frozen=True)
class Toy:
    """Appends ``x + shift`` to the first output, or does worse."""

    shift: float = 0.0
    fault: str = ""
    idempotent: bool = False

    def __call__(self, network, statistics=None):
        network = network if self.fault == "input" else network.edit()
        graph = network.graph
        output = graph.output_node()
        first, *others = output.args[0]
        with graph.inserting_before(output):
            new = graph.call_function(aten.add.Scalar, (first, self.shift))
            if self.fault == "dead":
                dead = graph.call_function(aten.neg.default, (first,))
                dead.meta.update(val=first.meta["val"], title="dead")
        new.meta.update(val=None if self.fault == "value" else first.meta["val"], title="toy")
        output.args = ((new, *others),)
        network.module.recompile()
        return network if self.fault == "dead" else finish(network)


def test_an_honest_toy_passes():
    starts, inputs = networks("mlp")
    assert check(Toy, starts[0], inputs)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"shift": 1e-3}, AssertionError, "leaves the output as it is"),
        ({"fault": "input"}, AssertionError, "leaves its input as it is"),
        ({"idempotent": True}, AssertionError, "a second time changes nothing"),
        ({"fault": "dead"}, RewriteError, "after Toy, dead .*'dead'"),
        ({"fault": "value"}, RewriteError, "after Toy, toy .*'values'"),
    ],
)
def test_a_broken_toy_is_caught(options, error, said):
    starts, inputs = networks("mlp")
    network = starts[0].edit()
    finish(network)
    with pytest.raises(error, match=said):
        check(lambda: Toy(**options), network, inputs)


def test_statistics_of_other_data_than_the_networks_are_no_excuse():
    """A rewrite with statistics changes scales, not the function, whatever it was told."""
    (_, network), inputs = networks("vit")
    other = statistics_of(network, draw(((3, 16, 16),), 4, 99), "smooth")
    made = REWRITES["smooth"]()(network, other)
    assert distance(flat(made(*inputs))[0], flat(network(*inputs))[0]) <= 1e-5


def test_verify_returns_what_it_was_given():
    (captured, folded), _ = networks("unet")
    assert verify(captured) is captured
    assert verify(replace(folded, notes=("x",))).notes == ("x",)
    assert add_tensor(captured.edit(), "spare", torch.ones(2)) == "spare"
