"""Branches beside a shortcut: which there are, and the network without them."""

import pytest
import torch
from torch import nn

from tersor.network.capture import capture
from tersor.network.groups import branches, live, settled, without
from tests.network.groups.nets import Sum, bottleneck, conv, head, made


def found(net, *example):
    return branches(capture(net.eval(), example))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet", ["0.1.body.2.0", "0.2.body.2.0"]),
        ("resnext", ["0.1.body.2.0"]),
        ("padded", ["body.1"]),
    ],
)
def test_what_lies_beside_a_shortcut(name, layers):
    net, example = made(name)
    names = [b.name for b in branches(capture(net, example))]
    assert names == layers


def test_a_projection_is_the_shortcut_and_the_longer_way_the_branch():
    net = head(8, nn.Sequential(conv(3, 4), Sum(conv(4, 8), conv(8, 8), shortcut=conv(4, 8, 1))))
    (branch,) = found(net, torch.zeros(2, 3, 8, 8))
    assert branch.layers == ("0.1.body.0.0", "0.1.body.1.0")


def test_sums_of_equals_and_of_other_sizes_are_no_branches():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x):
            y = self.a(x) + self.b(x)  # neither is the shortcut of the other
            return y + self.c(y)  # one column, spread over eight

    assert not found(Two(), torch.zeros(2, 4))


def test_a_value_that_others_read_cannot_go():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.a(x)
            return x + y, self.b(y)

    assert not found(Read(), torch.zeros(2, 4))


def test_without_a_branch_a_network_computes_what_its_shortcut_gives():
    net = head(8, nn.Sequential(conv(3, 8), bottleneck(8, 4), bottleneck(8, 4))).eval()
    network = capture(net, (torch.zeros(2, 3, 8, 8),))
    first, second = branches(network)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    short = nn.Sequential(nn.Sequential(net[0][0], net[0][2]), *net[1:])
    small = settled(without(network, [first]))
    with torch.no_grad():
        torch.testing.assert_close(small(x), short(x))
    assert not any(name.startswith("0.1.") for name, _ in small.tensors())
    assert live(network, [first]) >= {n.name for n in small.operators()}
    both = settled(without(network, [first, second]))
    with torch.no_grad():
        torch.testing.assert_close(both(x), nn.Sequential(net[0][0], *net[1:])(x))


def test_nested_branches_go_together():
    net = nn.Sequential(nn.Linear(4, 4), Sum(nn.Linear(4, 4), Sum(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))))
    network = capture(net.eval(), (torch.zeros(2, 4),))
    inner, outer = branches(network)
    assert inner.operators < outer.operators
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(settled(without(network, [inner, outer]))(x), net[0](x))
