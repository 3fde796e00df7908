"""Biases as int32 arithmetic holds them."""

import pytest
import torch
from quantized import Q, QConv, QLinear, Residual, draw, network

from tersor.network.corrections.int32_bias import LIMIT, fit_biases
from tersor.network.network import CONVOLUTIONS, LINEARS, Network, bias_node


def layers(net: Network):
    """(bias, unit, codes of the weight) of every layer, in float64."""
    for node in net.operators():
        if node.target in CONVOLUTIONS + LINEARS:
            step = net.tensor(node.args[0].args[1]).double()
            scale = net.tensor(node.args[1].args[1]).double().reshape(-1)
            bias = net.tensor(bias_node(node)).double()
            yield bias, step * scale, net.tensor(node.args[1].args[0])


def test_every_bias_becomes_a_whole_number_of_units_and_moves_by_half_a_unit_at_most():
    torch.manual_seed(0)
    net = network(Residual())
    fitted = fit_biases(net)
    pairs = list(zip(layers(net), layers(fitted), strict=True))
    assert len(pairs) == 3
    for (before, unit, codes), (after, unit_after, codes_after) in pairs:
        assert torch.equal(unit, unit_after)
        assert torch.equal(codes, codes_after)
        whole = after / unit
        # A float32 bias of n units is off a whole number by n rounding errors at most.
        assert ((whole - whole.round()).abs() <= whole.abs() * 2**-24 + 1e-9).all()
        assert ((after - before).abs() <= unit * 0.5 + before.abs() * 2**-23).all()
        assert not torch.equal(after, before)


def test_a_dead_channel_gets_a_scale_in_which_its_bias_fits_and_the_output_stays():
    conv = QConv(3, 4)
    conv.weight.scale[1] = 1e-12
    conv.bias.data = torch.tensor([0.1, 0.9, -0.2, 0.3])
    net = network(Q(0.02, 128), conv)
    (bias, unit, _), *_ = layers(net)
    assert bias[1] / unit[1] > 2**31
    fitted = fit_biases(net)
    (bias, unit, codes), *_ = layers(fitted)
    assert ((bias / unit).abs() <= LIMIT * (1 + 1e-6)).all()
    assert (bias[1] / unit[1]).abs() > LIMIT * 0.99
    assert codes.dtype == torch.int8
    x = draw(4, 3, 8, 8)
    assert (fitted(x) - net(x)).abs().max() <= 0.5 * unit.max()


def test_a_tensor_with_one_scale_is_raised_as_a_whole():
    from tersor.numerics.spec import QuantSpec

    linear = QLinear(6, 4, QuantSpec("int8", "tensor"))
    linear.weight.scale.fill_(1e-11)
    fitted = fit_biases(network(Q(0.02), linear, shape=(6,)))
    (bias, unit, _), *_ = layers(fitted)
    assert unit.numel() == 1
    assert (bias / unit).abs().max() <= LIMIT * (1 + 1e-6)


def test_twice_is_once():
    conv = QConv(3, 4)
    conv.weight.scale[1] = 1e-12
    once = fit_biases(network(Q(0.02, 128), conv))
    twice = fit_biases(once)
    assert [(n, t.tolist()) for n, t in once.tensors()] == [(n, t.tolist()) for n, t in twice.tensors()]


@pytest.mark.parametrize(
    "move",
    [
        lambda x: torch.nn.functional.pad(x, (0, 1, 0, 1)),
        lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
        lambda x: torch.nn.functional.max_pool2d(x, 2).transpose(2, 3),
        lambda x: x.reshape(x.shape[0], 3, 8, 8),
    ],
)
def test_the_quantizer_is_found_behind_what_moves_its_values(move):
    torch.manual_seed(0)
    step, conv = torch.tensor(0.02), QConv(3, 4)
    fitted = fit_biases(network(Q(step, 128), move, conv))
    node = next(n for n in fitted.operators() if n.target in CONVOLUTIONS)
    unit = step.double() * conv.weight.scale.double().reshape(-1)
    whole = fitted.tensor(bias_node(node)).double() / unit
    assert ((whole - whole.round()).abs() <= whole.abs() * 2**-24 + 1e-9).all()


@pytest.mark.parametrize(
    "join", [lambda x: torch.cat([Q(0.02)(x), Q(0.03)(x)], 1), lambda x: torch.cat([Q(0.02)(x), x], 1)]
)
def test_values_on_two_grids_are_on_none(join):
    net = network(join, QConv(6, 4))
    assert [t.tolist() for _, t in fit_biases(net).tensors()] == [t.tolist() for _, t in net.tensors()]


@pytest.mark.parametrize("steps", [(QConv(3, 4),), (torch.nn.Conv2d(3, 4, 3),), (Q(0.1), torch.nn.Conv2d(3, 4, 3))])
def test_layers_that_are_not_integer_keep_their_bias(steps):
    net = network(*steps)
    assert [t.tolist() for _, t in fit_biases(net).tensors()] == [t.tolist() for _, t in net.tensors()]
