"""Networks that users of other tools complain of: what goes computes the same, and what stays has its reason."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.network.capture import capture
from tersor.network.groups import Kept, checked, cut, find, macs, macs_left
from tersor.network.groups.check import TOLERANCE, difference
from tersor.network.groups.orders import orders
from tersor.network.groups.zeros import vanishes
from tersor.network.network import op_name
from tersor.network.rewrites.fold_constants import FoldConstants
from tests.network.groups.odd import ODD, Of, made

# What must stay, and the reason that is true of it; all others can lose at least two thirds of their products.
STAY = {
    "cbam": {("a.weight", 0): "mean reads all", ("up.weight", 0): "mean reads all"},
    "eca": {("a.weight", 0): "conv1d reads them as places"},
    "places-first": {("a.weight", 0): "layer_norm takes the mean", ("down.weight", 0): "layer_norm takes the mean"},
    "dynamic": {("route.weight", 0): "softmax reads all"},
    "tied": {("table.weight", 0): "chosen by number"},
    "slots": {("w", 0): "mean reads all"},
    "linear-attention": {("q.weight", 0): "sums products of them that are not zero", ("k.weight", 0): "not zero"},
    "norms": {("10.weight", 0): "mean of a group"},
}
KEPT = {"cbam", "eca"}  # they keep nearly all


def structure(name):
    net, example = made(name)
    return find(FoldConstants()(capture(net, example)))


def share(these):
    """Of the products that can go."""
    gone = [a for g in these.groups for a in g.atoms[:-1].tolist()]
    assert difference(these, gone) <= TOLERANCE if gone else True
    return 1 - macs_left(Kept(these, gone)) / macs(these.network)


@pytest.mark.parametrize("name", ODD)
def test_what_can_go_computes_the_same_and_what_stays_says_why(name):
    these = structure(name)
    good = checked(these)
    assert len(good.groups) == len(these.groups) - (name == "linear-attention")
    for group in good.groups:
        for seed in range(2):
            some = np.random.default_rng(seed).permutation(group.atoms)[: max(1, len(group) // 3)].tolist()
            assert difference(good, some) <= TOLERANCE, group.name
    assert share(good) >= 2 / 3 or name in KEPT
    for site, why in STAY.get(name, {}).items():
        assert why in good.fixed[site], good.fixed


def test_every_odd_network_that_stays_is_listed():
    """Outside of the list, only inputs and outputs stay."""
    for name in ODD.keys() - STAY.keys():
        reasons = set(structure(name).fixed.values())
        assert all("network's" in why for why in reasons) or name == "spectrum", (name, reasons)


def test_a_shuffle_lets_each_channel_go_by_itself():
    these = structure("shuffles")
    assert sorted(len(g) for g in these.groups) == [8, 8, 8]
    small = cut(these, these.groups[0].atoms[:3].tolist())
    assert "index_select" in {op_name(n) for n in small.operators()}
    assert "permute" not in {op_name(n) for n in small.operators()}
    whole = cut(these, these.groups[-1].atoms[:3].tolist() if len(these.groups[-1].sites) == 2 else [])
    assert macs(whole) <= macs(these.network)


class Views(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x):
        return self.of(x)


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (lambda x: x.view(-1, 3, 4, 5).transpose(1, 2).reshape(-1, 12, 5), 1),
        (lambda x: x.view(-1, 12, 5).view(-1, 12, 1, 5).transpose(2, 1).reshape(-1, 12, 5), None),  # nothing moves
        (lambda x: x.unflatten(2, (5, 1)).transpose(2, 3).flatten(2), None),
        (lambda x: F.channel_shuffle(x, 4), 1),
        (lambda x: x.view(-1, 2, 6, 5).flip(1).reshape(-1, 12, 5), None),  # no run of views
        (lambda x: x.reshape(-1, 3, 4, 5).permute(0, 3, 1, 2).reshape(-1, 12, 5), None),  # two dimensions mix
        (lambda x: x.view(-1, 2, 3, 2, 5).permute(0, 3, 2, 1, 4).contiguous().view(-1, 12, 5), 1),
    ],
)
def test_runs_of_views_are_orders_of_one_dimension(of, expected):
    x = torch.randn(2, 12, 5)
    network = capture(Views(of).eval(), (x,))
    found, _ = orders(network)
    assert [order.dim for order in found.values()] == ([] if expected is None else [expected])
    for order in found.values():
        assert torch.equal(of(x), x[:, torch.from_numpy(order.order.copy())])


@pytest.mark.parametrize(
    ("of", "free"),
    [
        (lambda m, x: m.b(m.a(x) / (m.a(x) ** 2 + 0.0).sum(-1, keepdim=True)), False),  # not known to be zero
        (lambda m, x: m.b(m.a(x) * (m.a(x) * F.relu(m.a(x))).sum(-1, keepdim=True)), True),
        (lambda m, x: m.b(m.a(x) * torch.sigmoid(m.a(x)).sum(-1, keepdim=True)), False),
        (lambda m, x: m.b(F.normalize(m.a(x), dim=-1)), True),
        (lambda m, x: m.b(F.normalize(m.a(x) + 1, dim=-1)), False),
        (lambda m, x: m.b(F.normalize(torch.cat((m.a(x)[:, :4].tanh(), m.a(x)[:, 4:].sin()), 1), dim=-1)), True),
        (lambda m, x: m.b(F.normalize(m.a(x).view(-1, 2, 4), dim=1).flatten(1)), True),
        (lambda m, x: m.b(m.a(x) * m.a(x).norm(p=1, dim=-1, keepdim=True)), True),
        (lambda m, x: m.b(m.a(x) * m.a(x).norm(p=float("-inf"), dim=-1, keepdim=True)), False),
        (lambda m, x: m.b(m.a(x) * m.a(x).exp().sum(-1, keepdim=True)), False),
        (lambda m, x: m.b(m.a(x).softmax(0) * m.a(x).softmax(0).sum(-1, keepdim=True)), False),
    ],
)
def test_sums_and_norms_over_what_is_zero_anyway_let_it_go(of, free):
    torch.manual_seed(0)
    net = Of(of, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    these = find(capture(net, (torch.randn(4, 6),)))
    assert bool(these.groups) == free, these.fixed
    for group in these.groups:
        assert difference(these, group.atoms[: len(group) // 2].tolist()) <= TOLERANCE
    if not free:
        assert any(word in these.fixed["a.weight", 0] for word in ("sum", "norm", "softmax"))


def test_zeros_are_claimed_only_where_there_are_zeros():
    """Every value said to be zero where channels go is so in the zeroed network."""
    from tersor.network.groups import zeroed
    from tersor.network.network import walk

    for name in ("rotated", "selective", "halves", "ghost", "norms", "unfolded", "multihead", "shifted", "transposed"):
        these = structure(name)
        gone = [a for g in these.groups for a in g.atoms[: len(g) // 2].tolist()]
        kept, nodes, count = Kept(these, gone), {n.name: n for n in these.network.graph.nodes}, 0

        def see(node, value, these=these, kept=kept, nodes=nodes, name=name):
            nonlocal count
            old = nodes[node.name]
            cells = these.flow.values.get(old)
            if node.op != "call_function" or not isinstance(value, torch.Tensor) or not isinstance(cells, tuple):
                return
            for dim, own in enumerate(cells):
                mask = kept.mask(own)
                if old not in these.flow.inside and not mask.all() and vanishes(these.flow, old, dim):
                    count += 1
                    lost = value.index_select(dim, torch.from_numpy(np.flatnonzero(~mask)))
                    assert lost.abs().max() == 0, (name, node.name, dim)

        small = zeroed(these, gone)
        walk(small, small.example, see)
        assert count > 2, name
