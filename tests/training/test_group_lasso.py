"""Group lasso and network slimming: against minimizers by brute force, and what they make zero in a training."""

import copy

import pytest
import torch
from torch import nn

from tersor.errors import NumericsError, RecipeError
from tersor.training.proximal import GroupLasso, Slimming
from tersor.training.proximal.group_lasso import Together, shrink
from tersor.training.proximal.optimizer import ProximalOptimizer
from tersor.training.proximal.pulls import pulled
from tersor.training.roles import Roles


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def minimum(w, penalty, strength):
    """argmin ½‖v − w‖² + strength·penalty(v) in float64 by search over a fine grid, refined four times."""
    centre, reach = w.double(), float(w.abs().max()) * 1.2 + 1e-3
    for _ in range(5):
        axes = [torch.linspace(float(c) - reach, float(c) + reach, 41, dtype=torch.float64) for c in centre]
        points = torch.cartesian_prod(*axes).reshape(-1, len(w))
        points = torch.cat([points, torch.zeros(1, len(w), dtype=torch.float64)])
        cost = (points - w.double()).square().sum(1) / 2 + strength * penalty(points)
        centre, reach = points[cost.argmin()], reach / 10
    return centre


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_group_lasso_is_the_minimum_for_each_output(strength, seed):
    weight = drawn(4, 2, seed=seed)
    found = GroupLasso()(weight, strength)
    for row, w in zip(found, weight, strict=True):
        expected = minimum(w, lambda v: v.norm(dim=1), strength)
        assert torch.allclose(row.double(), expected, atol=2e-3)
    assert ((found == 0).all(1) == (weight.norm(dim=1) <= strength)).all()


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_slimming_is_the_minimum_of_l1(strength):
    scales = drawn(2, seed=5)
    assert torch.allclose(
        Slimming()(scales, strength).double(), minimum(scales, lambda v: v.abs().sum(1), strength), atol=2e-3
    )


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_channels_across_tensors_are_the_minimum_of_their_common_norm(strength):
    """A channel with one weight in each of two tensors, along different dimensions."""
    a, b = drawn(3, 1, seed=1), drawn(1, 3, seed=2)
    rows = torch.stack([a[:, 0], b[0]], 1)
    where = torch.arange(3)[:, None]
    one, other = a.clone(), b.clone()
    shrink([(one, 0, where), (other, 1, where)], strength)
    for k in range(3):
        expected = minimum(rows[k], lambda v: v.norm(dim=1), strength)
        assert torch.allclose(torch.stack([one[k, 0], other[0, k]]).double(), expected, atol=2e-3)


def test_several_positions_of_a_channel_are_one_group():
    weight = drawn(2, 6)
    found = weight.clone()
    shrink([(found, 1, torch.tensor([[0, 3], [1, 4], [2, 5]]))], 0.7)
    for k in range(3):
        own = weight[:, [k, k + 3]]
        assert torch.allclose(found[:, [k, k + 3]], own * max(0.0, 1 - 0.7 / float(own.norm())), atol=1e-6)


def test_the_other_dimension_holds_the_outputs_of_a_turned_weight():
    weight = drawn(3, 4, 2, 2)
    turned = GroupLasso(axis=1)(weight, 1.0)
    assert torch.allclose(turned, GroupLasso()(weight.transpose(0, 1), 1.0).transpose(0, 1))


@pytest.mark.parametrize("strength", [-1.0, float("inf"), float("nan")])
def test_an_impossible_strength_is_refused(strength):
    with pytest.raises(NumericsError, match="it must be finite and not negative"):
        GroupLasso()(drawn(2, 2), strength)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu().mean((2, 3)))


def run(asked, strength, roles, steps=60):
    torch.manual_seed(0)
    net = Net()
    inner = torch.optim.SGD(net.named_parameters(), lr=0.05)
    optimizer = pulled(inner, asked, strength, net, [], steps, roles)
    for k in range(steps):
        x = drawn(16, 2, 5, 5, seed=k)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), (x.mean((1, 2, 3)) > 0).long()).backward()
        optimizer.step()
    return net


ROLES = Roles(
    {"first.weight": 1, "last.weight": 1},
    scales=frozenset({"norm.weight"}),
    channels=({(name, 0): torch.arange(6)[:, None] for name in ("first.weight", "first.bias", "norm.bias")},),
)


def test_slimming_makes_scales_zero_and_nothing_else():
    net = run("slimming", 0.4, ROLES)
    assert (net.norm.weight == 0).any()
    assert (net.first.weight != 0).all()
    assert (run("slimming", 0.0, ROLES).norm.weight != 0).all()


def test_group_lasso_makes_whole_outputs_zero():
    net = run("group-lasso", 0.3, ROLES)
    rows = net.first.weight.flatten(1) == 0
    assert rows.all(1).any()
    assert torch.equal(rows.any(1), rows.all(1))
    assert (net.norm.weight != 0).all()


def test_channels_go_with_all_that_writes_them():
    net = run({"group-lasso": {"over": "channels"}}, 0.3, ROLES)
    gone = (net.first.weight == 0).flatten(1).all(1)
    assert gone.any()
    assert not net.first.bias[gone].any()
    assert not net.norm.bias[gone].any()
    assert net.last.weight.all()
    assert not run({"group-lasso": {"over": "channels"}}, 0.0, ROLES).first.weight.eq(0).any()


def test_masks_stay_beside_common_norms():
    net = Net()
    optimizer = ProximalOptimizer(torch.optim.SGD(net.named_parameters(), lr=0.1))
    where = torch.arange(6)[:, None]
    optimizer.register_step_post_hook(Together([[(net.first.weight, 0, where)]], 0.01))
    keep = drawn(*net.first.weight.shape) > 0
    optimizer.mask(net.first.weight, keep)
    before = copy.deepcopy(net.first.weight.detach())
    net(drawn(4, 2, 5, 5)).square().sum().backward()
    optimizer.step()
    assert not net.first.weight[~keep].any()
    assert not torch.equal(net.first.weight, before)


def test_nothing_to_pull_is_refused():
    with pytest.raises(RecipeError, match="pulls the scales of BatchNorms, and none is trained here"):
        run("slimming", 0.1, Roles())
    with pytest.raises(RecipeError, match="no channels of this network can go: take `over: outputs`"):
        run({"group-lasso": {"over": "channels"}}, 0.1, Roles())
