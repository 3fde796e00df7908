"""Hooks that record features disturb nothing."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tersor.errors import RecipeError, TaskError
from tersor.training.losses.features import Features, layer_names
from tests.training.networks import Tapped, pictures

X = torch.rand(2, 3, 16, 16)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in module.modules())


def fails_inside(features: Features, net: nn.Module) -> None:
    with features:
        assert hooks(net) == 2
        net(X)
        raise ZeroDivisionError


def test_features_are_what_the_layers_return_with_their_gradients():
    net = pictures()
    with Features(net, ["layer1", "layer2.0.conv"]) as features:
        net(X)
        found = features.take()
    stem = net.layer1(net.stem(X))
    assert found["layer1"].shape == stem.shape == (2, 4, 16, 16)
    assert found["layer2.0.conv"].shape == (2, 8, 8, 8)
    found["layer1"].sum().backward()
    assert net.stem.weight.grad is not None


def test_every_run_is_recorded_anew_and_read_once():
    net = pictures().eval()
    with Features(net, ["head"]) as features:
        for k in range(3):
            out = net(X + k)
            assert features.take()["head"] is out
        with pytest.raises(TaskError, match="no features of head were recorded: the network did not call them"):
            features.take()


def test_hooks_go_when_the_block_is_left_also_by_an_error_and_can_come_again():
    net = pictures()
    features = Features(net, ["layer1", "head"])
    assert hooks(net) == 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fails_inside(features, net)
        assert hooks(net) == 0
    with pytest.raises(TaskError, match="of layer1, head were recorded: enter `with` before the network runs"):
        features.take()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_that_is_made_while_recording_records_nothing(copied):
    net = pictures().eval()
    with Features(net, ["layer1", "head"]) as features:
        out = net(X)
        twin = copied(net)  # features that are no leaves of autograd would stop a deepcopy
        assert torch.equal(twin(X + 1), net.eval()(X + 1))
        net(X)
        twin(X + 1)
        assert torch.equal(features.take()["head"], out)


def test_an_average_of_weights_is_made_and_updated_while_recording():
    net = pictures()
    with Features(net, ["layer1"]) as features:
        net(X)
        average = torch.optim.swa_utils.AveragedModel(net)
        average.update_parameters(net)
        recorded = features.take()["layer1"]
        net(X)
        average(X + 5)
        assert torch.equal(features.take()["layer1"], recorded)


def test_wrapped_networks_are_looked_through(tmp_path):
    net = pictures()
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        with Features(wrapped, ["layer1"]) as features:
            wrapped(X)
            features.take()["layer1"].sum().backward()
        assert net.stem.weight.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()
    assert layer_names(nn.DataParallel(net)) == layer_names(net)


@pytest.mark.slow
def test_compiled_networks_are_recorded_if_they_are_compiled_afterwards():
    net = pictures().eval()
    with Features(net, ["layer1"]) as features:
        compiled = torch.compile(net, backend="eager")
        for k in range(2):
            out = compiled(X + k)
            recorded = features.take()["layer1"]
            assert recorded.shape == (2, 4, 16, 16)
            assert out.shape == (2, 4)
    with Features(compiled, ["layer2"]) as features:
        net(X)
        assert features.take().keys() == {"layer2"}


def test_checkpointed_layers_are_recorded_with_their_gradients():
    from torch.utils.checkpoint import checkpoint

    net = pictures()
    first = net.layer1.forward
    net.layer1.forward = lambda x: checkpoint(first, x, use_reentrant=False)
    with Features(net, ["layer1", "layer1.0"]) as features:
        net(X)
        found = features.take()
        sum(f.sum() for f in found.values()).backward()
        assert net.stem.weight.grad.abs().sum() > 0


def test_an_unknown_layer_is_named_with_the_nearest_one():
    with pytest.raises(RecipeError, match=r"the Pictures has no layer 'layer_1' .did you mean 'layer1'"):
        Features(pictures(), ["layer_1"])


def test_a_trainable_graph_is_recorded_behind_its_operators():
    net = Tapped()
    names = ["layer1", "layer1.0", "layer2.conv", "stem"]
    with Features(net, names) as features:
        net(X)
        found = features.take()
    assert [tuple(found[n].shape) for n in names] == [(2, 4, 16, 16)] * 2 + [(2, 4, 8, 8), (2, 4, 16, 16)]
    assert set(net.identities) == {"layer1/relu", "layer1/0/relu", "layer2/conv", "stem"}  # a module ends with its last
    with pytest.raises(RecipeError, match="no layer 'layer3'"):
        Features(net, ["layer3"])
