"""Losses of widths and branches, measured: those of the networks that a user would build by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from tersor.network.groups import find
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.graph.pruning.facts import Facts
from tersor.pipeline.graph.pruning.selection import Offer
from tersor.pipeline.graph.pruning.trials import Trial, divergence, losses
from tersor.pipeline.graph.pruning.widths import measured, scaled, without
from tersor.task import Task


def made():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(64, 6)
    network = captured(Task(name="t", model=net, example=(x[:2],), calibration=lambda: [(x,)]))
    structure = find(network)
    (group,) = structure.groups
    return net, x, network, group, structure


def by_hand(net, x, left):
    """The outputs of a network with the other columns fitted by least squares, and a shift."""
    hidden = net[1](net[0](x)).double()
    wanted = net[2](hidden.float()).double()
    apart = hidden[:, left] - hidden[:, left].mean(0)
    weight = torch.linalg.lstsq(apart, wanted - wanted.mean(0)).solution
    return (apart @ weight + wanted.mean(0)).float()


@pytest.mark.parametrize("lost", [[0], [1, 5], [0, 2, 3, 6]])
def test_a_trial_computes_what_the_narrower_network_would(lost):
    net, x, network, group, structure = made()
    facts = Facts(structure, [(x,)], frozenset({"inputs"}), 0)
    (found,) = without(facts, group, group.atoms[lost].tolist()).run(network, (x,))
    left = [k for k in range(8) if k not in lost]
    with torch.no_grad():
        assert torch.allclose(found, by_hand(net, x, left), atol=2e-3)


def test_losses_are_the_divergence_of_what_is_left():
    net, x, network, group, structure = made()
    facts = Facts(structure, [(x,)], frozenset({"inputs", "outputs"}), 0)
    order = group.atoms[[3, 1, 4]].tolist()
    offer = Offer(order, (0, 1, 3), np.array([0.0, 1e-5, 2e-5]), np.array([0.0, 1.0, 3.0]))
    (found,) = measured([offer], [group], facts, network, [(x,)])
    with torch.no_grad():
        for count, loss in zip(offer.counts, found.loss, strict=True):
            left = [k for k in range(8) if group.atoms[k] not in order[:count]]
            wanted = divergence(net(x), by_hand(net, x, left)) / len(x)
            assert loss == pytest.approx(wanted, rel=0.05, abs=1e-7)
    assert found.saved is offer.saved


def test_an_atom_that_an_unknown_reader_sees_keeps_its_score():
    _net, x, network, group, structure = made()
    facts = Facts(structure, [(x,)], frozenset({"inputs"}), 0)
    facts.unseen = {int(group.atoms[0]): "sort"}
    offer = Offer(group.atoms.tolist(), (0, 4), np.array([0.0, 7.0]), np.array([0.0, 1.0]))
    (found,) = measured([offer], [group], facts, network, [(x,)])
    assert found.loss.tolist() == [0.0, 7.0]


def test_columns_simply_go_where_no_inputs_were_seen():
    net, x, network, group, structure = made()
    facts = Facts(structure, [(x,)], frozenset(), 0)
    (found,) = without(facts, group, group.atoms[:3].tolist()).run(network, (x,))
    hidden = net[1](net[0](x))
    hidden[:, :3] = 0
    assert torch.allclose(found, net[2](hidden), atol=1e-6)


def test_losses_do_not_fall_and_nothing_lost_costs_nothing():
    curve = scaled((0, 1, 2, 3), np.array([0.0, 1.0, 2.0, 3.0]), {1: 5.0, 3: 1.0})
    assert curve[0] == 0
    assert (np.diff(curve) >= 0).all()
    _net, x, network, _group, _structure = made()
    assert losses(network, network, [Trial()], [(x,)]) == [0.0]
