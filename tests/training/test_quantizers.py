"""What the training quantizers learn from: gradients against autograd, difference quotients and the papers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tersor.numerics import QuantSpec, expand
from tersor.numerics.qtensor import quantize_tensor
from tersor.recipe import Train
from tersor.training.quantizers import Start, quantizer, rounding
from tersor.training.quantizers.binary import bi_real
from tersor.training.quantizers.lsq import LearnedStep
from tersor.training.quantizers.projected import ProjectedWeight
from tersor.training.quantizers.rounding import RoundToGrid
from tersor.training.quantizers.scales import learned_scale, share


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_quantizer(name: str, spec: QuantSpec, x: Tensor):
    """One whose range clips some weights."""
    q = quantize_tensor(0.7 * x, spec)
    return quantizer(name, Start("layer", spec, q.scale, q.zero_point, x))


class Through(torch.autograd.Function):
    """Rounds, and passes the gradient on."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def composed(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """The definition, whose rounding passes its gradient on."""
    step, zero = expand(scale, x.shape, spec.block), expand(zero_point, x.shape, spec.block)
    return Through.apply((x / step).clamp(spec.low - zero, spec.high - zero)) * step


@pytest.mark.parametrize("size", [3, 9000])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:3"])
@pytest.mark.parametrize("format", ["uint4", "int3", "ternary"])
def test_gradients_are_those_of_the_composition(format, granularity, size):
    spec = QuantSpec(format, granularity, symmetric=format != "uint4")
    x = drawn(12, 4, size).requires_grad_()
    q = quantize_tensor(0.6 * x.detach(), spec)
    scale, zero = q.scale.clone().requires_grad_(), q.zero_point.clone().requires_grad_()
    arrived = drawn(*x.shape, seed=1)
    expanded = [expand(t, x.shape, spec.block) for t in (scale, zero)]
    y = RoundToGrid.apply(x, *expanded, spec.low, spec.high, None)
    plain = composed(x, scale, zero, spec)
    assert torch.equal(y, plain)
    found, wanted = (torch.autograd.grad(t, (x, scale, zero), arrived, retain_graph=True) for t in (y, plain))
    torch.testing.assert_close(found[0], wanted[0])
    assert torch.equal(found[0] == 0, wanted[0] == 0)
    for a, b in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-3)


def test_the_layout_and_the_slices_change_nothing(monkeypatch):
    monkeypatch.setattr(rounding, "PIECE", 1 << 16)
    x, scale, zero = drawn(9, 16, 32, 32).requires_grad_(), torch.tensor(0.3), torch.tensor(2.0)
    arrived = drawn(9, 16, 32, 32, seed=1)
    assert x.numel() > 2 * rounding.PIECE
    whole = torch.cat([RoundToGrid.apply(p, scale, zero, 0, 15, None) for p in x.split(1)])
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    for value in (x, last):
        y = RoundToGrid.apply(value, scale, zero, 0, 15, None)
        assert torch.equal(y, whole)
        assert y.stride() == value.stride()
        (found,) = torch.autograd.grad(y, value, arrived)
        assert torch.equal(found, arrived * ((x / scale >= -2) & (x / scale <= 13)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stochastic", [False, True])
def test_slices_have_the_gradients_of_the_whole(monkeypatch, dtype, stochastic):
    x, arrived = drawn(6, 8, 16, 16).to(dtype), drawn(6, 8, 16, 16, seed=1).to(dtype)
    x[0, 0, 0, :4] = torch.tensor([-2 * 0.3, 13 * 0.3, 0.0, 99.0])
    noise = torch.rand(x.shape) if stochastic else None

    def found(piece, layout):
        monkeypatch.setattr(rounding, "PIECE", piece)
        value = x.to(memory_format=layout).requires_grad_()
        grid = [torch.tensor(v, requires_grad=True) for v in (0.3, 2.0)]
        y = RoundToGrid.apply(value, *grid, 0, 15, noise)
        return y, *torch.autograd.grad(y, (value, *grid), arrived)

    whole = found(1 << 24, torch.contiguous_format)
    for layout in (torch.contiguous_format, torch.channels_last):
        sliced = found(1 << 11, layout)
        assert torch.equal(sliced[0], whole[0])
        assert torch.equal(sliced[1], whole[1])
        torch.testing.assert_close(sliced[2:], whole[2:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("limit", [-8.0, -1.0, 0.0, -0.0, 7.0, 255.0])
def test_the_first_value_beyond_a_limit(limit):
    for scale in [*torch.rand(200).mul(4).sub(2).exp().tolist(), 1e-30, 3e6, 1e12]:
        for side in (-math.inf, math.inf):
            beyond = np.float32(rounding._beyond(limit, scale, side))
            last, step = np.nextafter(beyond, np.float32(-side)), np.float32(scale)
            assert (beyond / step - limit) * math.copysign(1, side) > 0
            assert (last / step - limit) * math.copysign(1, side) <= 0


def test_the_scale_gradient_is_the_difference_quotient_inside_a_rounding_cell():
    # While no code changes, y = code · s is linear in s, so that its derivative is the code. The straight-through form
    # is that minus x/s, the derivative of the rounding that it leaves out.
    x, step = drawn(200).double(), 0.31
    zero = torch.zeros((), dtype=torch.float64)
    scale = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    near = [RoundToGrid.apply(x, scale.detach() + d, zero, -7, 7, None) for d in (-1e-9, 1e-9)]
    quotient = (near[1] - near[0]) / 2e-9
    same = torch.equal(*[(y / (step + d)).round() for y, d in zip(near, (-1e-9, 1e-9), strict=True)])
    assert same
    inside = (x / step).abs() <= 7
    wanted = (quotient - inside * x / step).sum()
    RoundToGrid.apply(x, scale, zero, -7, 7, None).sum().backward()
    torch.testing.assert_close(scale.grad, wanted, rtol=1e-5, atol=1e-5)


def test_the_zero_point_has_the_gradient_of_lsq_plus():
    start = Start("x", QuantSpec("uint2", symmetric=False), torch.tensor(0.5), torch.tensor(1.0))
    module = quantizer("lsq+", start)
    x = torch.tensor([-9.0, 0.2, 0.9, 9.0])
    module(x).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert module.offset.grad.item() == -0.5 * 1001


@pytest.mark.parametrize("size", [8, 8000])
def test_lsq_moves_its_scale_as_far_for_a_large_batch_as_for_a_small_one(size):
    """The loss is a mean over the batch, so that the sum of all gradients does not grow with it; neither does N."""
    moved = []
    for copies in (1, 16):
        start = Start("x", QuantSpec("uint4"), torch.tensor(0.2), torch.tensor(0.0))
        module = quantizer("lsq", start)
        x = drawn(4, size).abs().repeat(copies, 1)
        target = drawn(4, size, seed=1).repeat(copies, 1)
        (module(x) - target).square().sum(1).mean().backward()
        moved.append(module.log_scale.grad.item())
    assert moved[0] == pytest.approx(moved[1], rel=1e-4)
    assert moved[0] != 0


def test_lsq_steps_are_the_relative_steps_of_the_paper():
    start = Start("x", QuantSpec("uint4"), torch.tensor(0.2), torch.tensor(0.0))
    module, x, arrived = quantizer({"lsq": {"rate": 0.5}}, start), drawn(4, 9).abs(), drawn(4, 9, seed=1)
    module(x).backward(arrived)
    scale = learned_scale(module).detach().requires_grad_()
    (plain,) = torch.autograd.grad(composed(x, scale, torch.tensor(0.0), module.spec), scale, arrived)
    paper = plain / (9 * 15) ** 0.5
    # A step of log s is the relative step of s.
    torch.testing.assert_close(module.log_scale.grad, 0.5 * paper / scale.detach())


def test_a_weight_shares_its_gradient_factor_among_the_values_of_a_scale():
    assert share(drawn(6, 24), 6, 7, True) == pytest.approx((24 * 7) ** -0.5)
    assert share(drawn(6, 24), 1, 15, False) == pytest.approx((24 * 15) ** -0.5)


def test_pact_learns_its_clip_from_what_lies_above_it():
    module = quantizer("pact", Start("x", QuantSpec("uint4"), torch.tensor(0.1), torch.tensor(0.0)))
    x, arrived = drawn(300).abs(), drawn(300, seed=1)
    module(x).backward(arrived)
    top = learned_scale(module).detach() * 15
    torch.testing.assert_close(module.log_scale.grad, top * arrived[x > top].sum())


def test_the_sign_passes_gradients_inside_its_window_or_by_the_polynomial_of_bi_real():
    x = drawn(40)
    slopes = {"clip": lambda r: (r.abs() <= 1).float(), "bi-real": lambda r: (2 - 2 * r.abs()).relu()}
    for gradient, slope in slopes.items():
        start = Start("x", QuantSpec("binary"), torch.tensor(0.8), torch.tensor(0.0))
        module, latent = quantizer({"sign": {"gradient": gradient}}, start), x.clone().requires_grad_()
        module(latent).sum().backward()
        torch.testing.assert_close(latent.grad, slope(x / learned_scale(module).detach()))


def test_the_polynomial_of_bi_real_is_the_derivative_of_its_soft_sign():
    x = drawn(200).double()
    soft = lambda v: torch.where(v < 0, 2 * v + v * v, 2 * v - v * v).where(v.abs() < 1, v.sign())  # noqa: E731
    torch.testing.assert_close(bi_real(x), (soft(x + 1e-6) - soft(x - 1e-6)) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_error_decay_estimator_is_the_derivative_of_its_tanh(progress):
    x, one = drawn(4, 50), torch.ones(4, 1)
    module = quantizer("irnet", Start("w", QuantSpec("binary", "channel"), one, 0 * one, x))
    module.progress.fill_(progress)
    t = 10 ** (-1 + 2 * progress)
    soft = lambda v: max(1 / t, 1.0) * torch.tanh(t * v)  # noqa: E731
    scale = module.grid(module.latent(x))[0].double() * (torch.pi / 2) ** 0.5
    latent, arrived = x.clone().requires_grad_(), drawn(4, 50, seed=1)
    module(latent).backward(arrived)
    ratio = module.latent(x).double() / scale
    slope = (soft(ratio + 1e-6) - soft(ratio - 1e-6)) / 2e-6
    passed = arrived * slope
    wanted = passed - passed.mean(1, keepdim=True)  # the removed mean has a gradient of its own
    torch.testing.assert_close(latent.grad.double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_squashing_of_dorefa_has_the_derivative_of_tanh():
    x = drawn(6, 30)
    module = weight_quantizer("dorefa", QuantSpec("int8", "channel"), x)
    latent, arrived = x.clone().requires_grad_(), drawn(6, 30, seed=1)
    module(latent).backward(arrived)
    factor = x.abs().max().double() / torch.tanh(x.double()).abs().max()
    # Whatever is the largest lies exactly on the last code, inside.
    wanted = arrived * factor / torch.cosh(x.double()) ** 2
    torch.testing.assert_close(latent.grad.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_learned_ternary_level_has_the_gradient_of_the_paper():
    x = drawn(3, 40)
    module = weight_quantizer("ttq", QuantSpec("ternary", "channel"), x)
    latent, arrived = x.clone().requires_grad_(), drawn(3, 40, seed=1)
    y = module(latent)
    y.backward(arrived)
    level = learned_scale(module).detach()
    codes = (y.detach() / level).round()
    torch.testing.assert_close(latent.grad, arrived * torch.where(codes == 0, 1.0, level / level.mean()))
    wanted = 0.1 / 40**0.5 * (arrived * codes).sum(1, keepdim=True) / level
    torch.testing.assert_close(module.log_scale.grad, wanted)


# --- stochastic rounding ---


def test_stochastic_rounding_is_unbiased_while_training_and_nearest_in_eval_mode():
    spec = QuantSpec("int4", rounding="stochastic")
    x = torch.tensor([0.3, -1.6, 2.0, 6.99])
    module = quantizer("lsq", Start("w", spec, torch.tensor(1.0), torch.tensor(0.0), x))
    torch.manual_seed(0)
    draws = module.train()(x.repeat(20000, 1)).detach()
    assert set(draws[:, 0].tolist()) == {0.0, 1.0}
    # 4 standard errors of a fraction.
    torch.testing.assert_close(draws.mean(0), x, rtol=0, atol=4 * 0.5 / 20000**0.5)
    assert (draws[:, 2] == 2).all()
    assert torch.equal(module.eval()(x), torch.tensor([0.0, -2.0, 2.0, 7.0]))
    assert module.qtensor(x).codes.tolist() == [0, -2, 2, 7]


def test_the_scale_gradient_of_stochastic_rounding_is_that_of_its_own_codes():
    x, noise, scale = drawn(500), torch.rand(500, generator=torch.Generator().manual_seed(2)), torch.tensor(0.4)
    scale.requires_grad_()
    y = RoundToGrid.apply(x, scale, torch.tensor(0.0), -3, 3, noise)
    y.sum().backward()
    ratio = x / scale.detach()
    wanted = (y.detach() / scale.detach() - ratio * (ratio.abs() <= 3)).sum()
    torch.testing.assert_close(scale.grad, wanted)


@pytest.mark.parametrize("levels", ["ternary", "binary"])
def test_admm_leaves_weights_of_other_formats_to_learned_steps(levels):
    x = drawn(4, 9)
    asked = Train(proximal={"admm": {"set": levels}}).weight_quantizer
    for spec, kind in ((QuantSpec(levels, "channel"), ProjectedWeight), (QuantSpec("int8", "channel"), LearnedStep)):
        q = quantize_tensor(x, spec)
        assert type(quantizer(asked, Start("layer", spec, q.scale, q.zero_point, x))) is kind


@pytest.mark.parametrize(("name", "spec"), [
    ("lsq", QuantSpec("int4", "channel")), ("lsq+", QuantSpec("uint4", symmetric=False)), ("pact", QuantSpec("uint4")),
    ("ttq", QuantSpec("ternary", "channel")),
])  # fmt: skip
def test_weight_decay_pulls_scales_to_their_start(name, spec):
    weight = drawn(4, 8) if name in ("lsq", "ttq") else None
    scale = torch.full((4, 1) if weight is not None else (), 0.003)
    start = Start("x", spec, scale, torch.full_like(scale, 5.0 if name == "lsq+" else 0.0), weight)
    module, x = quantizer(name, start), drawn(4, 8).relu()
    grid = [t.clone() for t in module.grid(x)]
    assert torch.equal(grid[0], scale)  # exactly, where training starts
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        sum(p.sum() * 0 for p in module.parameters()).backward()
        optimizer.step()
    assert [torch.equal(a, b) for a, b in zip(module.grid(x), grid, strict=True)] == [True, True]
    with torch.no_grad():
        module.log_scale.add_(1.0)
    for _ in range(20):
        optimizer.step()
    assert (module.grid(x)[0] < 2.7 * scale).all()
    assert (module.grid(x)[0] > scale).all()


def test_a_scale_stays_within_a_thousand_times_its_start_and_returns():
    start = Start("x", QuantSpec("uint4"), torch.tensor(0.003), torch.tensor(0.0))
    module, x = quantizer("lsq", start), drawn(64).relu()
    for log in (-1e4, 1e4):
        with torch.no_grad():
            module.log_scale.fill_(log)
        scale = module.grid(x)[0].detach() / 0.003
        assert 1 / 1025 < scale < 1025
        module.zero_grad()
        (module(x) - x).square().sum().backward()
        assert torch.isfinite(module.log_scale.grad)
    # Too large: descent makes it smaller.
    assert module.log_scale.grad >= 0


@pytest.mark.parametrize("kind", ["ones", "itself"])
@pytest.mark.parametrize("piece", [1 << 14, 1 << 24])
def test_the_scale_gradient_does_not_cancel(monkeypatch, kind, piece):
    """Of one sign everywhere, as behind a sum or a mean, the parts of the gradient are larger than their difference."""
    monkeypatch.setattr(rounding, "PIECE", piece)
    x, scale = drawn(64, 4096).relu(), torch.tensor(0.02, requires_grad=True)
    arrived = torch.ones_like(x) if kind == "ones" else x
    y = RoundToGrid.apply(x, scale, torch.tensor(0.0), 0, 255, None)
    (found,) = torch.autograd.grad(y, scale, arrived)
    steps, step = (x / scale).detach(), float(scale.detach())
    codes = steps.round().clamp(0, 255).double()
    wanted = (arrived.double() * torch.where(steps <= 255, codes - x.double() / step, codes)).sum()
    deviation = 0.29 * float(arrived.double().square().sum().sqrt())
    assert abs(float(found) - float(wanted)) < 0.02 * deviation


@pytest.mark.parametrize("piece", [1, 1 << 24])
def test_an_infinite_value_is_clipped_and_has_no_gradient(monkeypatch, piece):
    monkeypatch.setattr(rounding, "PIECE", piece)
    x = torch.tensor([[1.0, math.inf, 2.0, -math.inf]], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = RoundToGrid.apply(x, scale, torch.tensor(0.0), 0, 15, None)
    for_x, for_scale = torch.autograd.grad(y.sum(), (x, scale))
    assert y.tolist() == [[1.0, 7.5, 2.0, 0.0]]
    assert for_x.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    assert for_scale.item() == 15


def test_a_gradient_has_a_gradient():
    x, scale = drawn(4, 1 << 17).requires_grad_(), torch.tensor(0.1)
    assert x.numel() > rounding.PIECE
    y = RoundToGrid.apply(x, scale, torch.tensor(0.0), -7, 7, None)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    inside = (x / scale).abs() <= 7
    torch.testing.assert_close(second, 8 * y * inside)
