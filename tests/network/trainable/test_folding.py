"""BatchNorm while training: what is trained is what is deployed, for every sign of γ."""

import pytest
import torch
import torch.nn.functional as F
from parts import task_of
from torch import Tensor, nn

from tersor.network.capture import capture
from tersor.network.rewrites import REWRITES
from tersor.network.trainable.build import trainable
from tersor.network.trainable.folding import DEAD, batch_norm, folded_weight, oriented, scale_factor, unfolded
from tersor.network.trainable.result import codes_of, network_of
from tests.network.trainable.students import call, recipe, same, student


def layer(signs: tuple[float, ...] = (1.0, -2.0, 0.5, -0.3)) -> nn.Sequential:
    torch.manual_seed(1)
    made = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    task_of(made, (3, 8, 8))
    with torch.no_grad():
        made[1].weight.copy_(torch.tensor(signs))
        made[1].bias.fill_(0.3)
    made[1].momentum = 1.0
    return made


def weights_alone(weights: str, granularity: str = "channel"):
    """Float activations."""
    made = recipe(weights, "fp32", granularity)
    return made


def task_with(model: nn.Module):
    made = task_of(nn.Sequential(nn.Identity()), (3, 8, 8))
    return type(made)(
        name="layer", model=model.eval(), example=(torch.zeros(1, 3, 8, 8),), calibration=made.calibration,
        evaluate=made.evaluate, metric=made.metric,
    )  # fmt: skip


@pytest.mark.parametrize("quantizer", ["lsq", "lsq+", "dorefa", "fixed"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_trained_layer_is_the_deployed_one_at_the_same_statistics(quantizer, granularity):
    """The deployed weights divided by γ/σ, and BatchNorm by the statistics of the batch behind them."""
    view = student(task_with(layer()), weights_alone("int4", granularity), {"weights": quantizer})
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (codes,) = codes_of(view).values()
    gamma, beta = view.get_parameter("1.weight"), view.get_parameter("1.bias")
    variance = view.get_buffer("1.running_var").clone()
    weight = unfolded(codes.dequantize(), gamma, variance, 1e-5, None)
    wanted = F.batch_norm(F.conv2d(x, weight), None, None, gamma, beta, training=True)
    torch.testing.assert_close(view.train()(x), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(view.eval()(x), network_of(view)(x))


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_channel_with_a_gamma_of_zero_has_a_grid_in_which_it_learns(weights):
    view = student(task_with(layer((0.0, 1.0, -1.0, 0.0))), weights_alone(weights))
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = view.train()(x)
    (before - 1).square().sum().backward()
    gamma = view.get_parameter("1.weight")
    assert (gamma.grad != 0).all()
    with torch.no_grad():
        gamma.sub_(0.01 * gamma.grad.sign())
    view.zero_grad()
    (view(x) - 1).square().sum().backward()
    assert (view.get_parameter("0.weight").grad.abs().amax((1, 2, 3)) > 0).all()
    network = network_of(view.eval())
    assert torch.equal(view(x), network(x))


def test_the_scale_of_a_dead_channel_is_that_of_a_live_one_when_deployed():
    view = student(task_with(layer((0.0, 1.0, -1.0, 0.5))), weights_alone("int8"))
    (scale,) = (t for n, t in network_of(view).tensors() if n.endswith("_scale"))
    assert scale[0] == scale.max()
    assert scale.min() > 1e-6


def test_frozen_batchnorm_trains_through_the_folded_form():
    view = student(task_with(layer()), weights_alone("int4")).train().freeze_batchnorm()
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    statistics = view.get_buffer("1.running_mean").clone()
    y = view(x)
    assert torch.equal(y, network_of(view)(x))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in view.parameters())
    assert torch.equal(statistics, view.get_buffer("1.running_mean"))
    other = student(task_with(layer()), weights_alone("int4")).train()
    other.load_state_dict(view.state_dict())
    assert torch.equal(other(x), y)
    assert not torch.equal(view.freeze_batchnorm(False)(x), y)


def test_a_batch_of_one_is_refused_by_name():
    from tersor.errors import TaskError

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    task = task_of(model, (3,))
    view = student(task, weights_alone("int8")).train()
    with pytest.raises(TaskError, match=r"^1: BatchNorm cannot train on a batch of one"):
        view(torch.zeros(1, 3))


def test_equalized_layers_train_under_their_own_names_without_their_batchnorm():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten()
    )
    task = task_of(model, (3, 8, 8))
    made = recipe(granularity="tensor")
    made = type(made)(steps=[made.steps[0].model_copy(update={"equalize": "on"})])
    view = student(task, made)
    assert {"0.weight", "0.bias", "3.weight", "3.bias"} <= dict(view.named_parameters()).keys()
    assert "equalization" in "".join(view._graphs.notes)
    batch = task.calibration()[0]
    assert same(call(view.eval(), batch), call(network_of(view), batch))


def test_a_float_network_folds_and_trains_alike():
    """Folded without a quantizer: the convolution keeps its own weights while training."""
    model = layer().eval()
    original = capture(model, (torch.zeros(2, 3, 8, 8),))
    folded = REWRITES["fold_batchnorm"]()(original)
    view = trainable(folded, folded, original, lambda *_: None, dict.fromkeys(dict(model.named_parameters()), True))
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(view.eval()(x), folded(x))
    assert torch.equal(view.train()(x), model.train()(x))
    assert torch.equal(view.get_buffer("1.running_var"), model[1].running_var)
    assert torch.equal(view.eval()(x), network_of(view)(x))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_folding_and_unfolding_are_inverse_and_differentiable():
    weight, gamma, variance = drawn(6, 2, 3), drawn(6), drawn(6).abs() + 0.1
    for groups in (None, 2):
        shaped = weight if groups is None else drawn(4, 3, 3)  # of a transposed convolution in 2 groups
        folded = folded_weight(shaped, gamma, variance, 1e-5, groups)
        torch.testing.assert_close(unfolded(folded, gamma, variance, 1e-5, groups), shaped)
        arguments = (shaped.requires_grad_(), gamma.clone().requires_grad_())
        torch.autograd.gradcheck(lambda w, g, n=groups: folded_weight(w, g, variance, 1e-5, n), arguments)
        torch.autograd.gradcheck(lambda w, g, n=groups: unfolded(w, g, variance, 1e-5, n), arguments)


def test_the_factor_of_scales_is_the_magnitude_that_folding_multiplies_by():
    weight, gamma, variance = drawn(4, 2), torch.tensor([2.0, -2.0, 0.0, 1e-9]), torch.ones(4)
    factor = scale_factor(gamma, variance, 0.0, 2)
    assert factor.flatten().tolist() == pytest.approx([2.0, 2.0, DEAD, 1e-9])
    folded = folded_weight(weight, gamma, variance, 0.0, None)
    torch.testing.assert_close(folded, oriented(weight, gamma) * factor.double(), rtol=1e-6, atol=1e-12)


def test_batchnorm_is_pytorchs():
    x, norm = drawn(8, 4, 3).float(), nn.BatchNorm1d(4)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    assert torch.equal(batch_norm(x, norm.weight, norm.bias, mean, variance, 0.1, norm.eps, "norm"), norm(x))
    assert torch.equal(mean, norm.running_mean)
