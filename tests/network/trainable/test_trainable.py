"""The trainable view of every kind of network: it trains like the model, and evaluates as what is deployed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tersor.errors import TaskError
from tersor.network.trainable.module import check_names
from tersor.network.trainable.result import network_of
from tests.network.trainable.students import (
    NETWORKS,
    RECIPES,
    call,
    loss_of,
    same,
    step,
    student,
    task,
    unquantized,
)

FEW = {"int8": ("shared", "norm first", "words"), "one scale": ("residual",), "int4": ("weight norm",)}
CASES = [
    pytest.param(name, recipe, id=f"{name}, {recipe}", marks=() if name in FEW[recipe] else pytest.mark.slow)
    for recipe in RECIPES
    for name in NETWORKS
]
EVERY = pytest.mark.parametrize(("name", "recipe"), CASES)


def evaluated(model, batch):
    with torch.no_grad():
        return call(model.eval() if isinstance(model, nn.Module) else model, batch)


@EVERY
def test_eval_mode_is_the_deployed_network_before_and_after_training(name, recipe):
    made, batches = task(name), task(name).calibration()
    view = student(made, RECIPES[recipe])
    before = evaluated(view, batches[0])
    assert same(before, evaluated(network_of(view), batches[0]))
    step(view, batches[:2])
    after = evaluated(view, batches[0])
    assert same(after, evaluated(network_of(view), batches[0]))
    assert not same(before, after)

    # Every parameter has its own name, once, and learns.
    own = {n: p.requires_grad for n, p in made.model.named_parameters()}
    found = {n: p for n, p in view.named_parameters() if not n.startswith("quantizers.")}
    assert {n: p.requires_grad for n, p in found.items()} == own
    missing = [n for n, p in view.named_parameters() if (p.grad is not None) != p.requires_grad]
    assert missing == []

    # Copies of every kind.
    other = student(made, RECIPES[recipe])
    other.load_state_dict(view.state_dict())
    for copied in (other, copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert same(after, evaluated(copied, batches[0]))
        assert same(after, evaluated(network_of(copied), batches[0]))


@pytest.mark.parametrize(
    "name", [n if n in ("residual", "cumulative") else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_without_quantizers_it_trains_exactly_as_the_model_does(name):
    made, batches = task(name), task(name).calibration()
    model, view = copy.deepcopy(made.model), unquantized(made)
    for module in model.modules():
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            module.dropout = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    for batch in batches[:2]:
        for one in (model, view):
            one.train().zero_grad()
            loss_of(one, batch).backward()
        grads = {n: p.grad for n, p in view.named_parameters()}
        for n, parameter in model.named_parameters():
            assert (grads[n] is None) == (parameter.grad is None)
            assert parameter.grad is None or torch.equal(parameter.grad, grads[n]), n
    assert torch.equal(loss_of(model, batches[0]), loss_of(view, batches[0]))
    buffers = dict(view.named_buffers())
    for n, buffer in model.named_buffers():
        assert n not in buffers or torch.equal(buffer, buffers[n])
        assert "running" not in n or n in buffers


@pytest.mark.parametrize("name", ["quantizers", "tapped", "batchnorm_frozen", "tap", "checkpoint", "forward", "train"])
def test_a_name_that_the_view_needs_itself_is_refused(name):
    with pytest.raises(TaskError, match=f"the model's {name} has a name that .*: rename it"):
        check_names(["layer.weight", f"{name}.weight"])


def test_dropout_is_said_to_be_off_and_can_be_turned_on():
    made, batches = task("words"), task("words").calibration()
    off = student(made, RECIPES["int8"]).train()
    assert torch.equal(loss_of(off, batches[0]), loss_of(off, batches[0]))
    assert "dropout is off" in "".join(off._graphs.notes)
    on = student(made, RECIPES["int8"], dropout=True).train()
    assert not torch.equal(loss_of(on, batches[0]), loss_of(on, batches[0]))
    assert torch.equal(loss_of(on.eval(), batches[0]), loss_of(off.eval(), batches[0]))


