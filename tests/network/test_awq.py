"""AWQ's scales are the best of their grid, SmoothQuant's are the formula, and clipping the best of its ranges."""

import pytest
import torch
from eager_blocks import blocks, network, recorded
from torch import nn

from tersor.network.blocks.awq import GRID, awq_scales, reader_statistics, smooth_scales
from tersor.network.blocks.scale_transfers import apply, scale_transfers
from tersor.numerics import QuantSpec, quantize_tensor

INT4 = QuantSpec("int4", "channel")


def outlying():
    """A norm whose channel 2 is large, two layers behind it, and two calls."""
    torch.manual_seed(0)

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(16), nn.Linear(16, 8), nn.Linear(16, 4, bias=False)
            self.norm.weight.data[2] = 30.0

        def forward(self, x):
            y = self.norm(x)
            return self.a(y), self.b(y)

    block = Fork()
    return block, [((torch.randn(n, 16),), {}) for n in (40, 24)]


def output_error(block, calls, scale, spec=INT4):
    """The error of both layers' outputs, written out."""
    total = 0.0
    for args, _ in calls:
        x = block.norm(*args).detach()
        for layer in (block.a, block.b):
            w = layer.weight.detach()
            total += float(((x / scale) @ quantize_tensor(w * scale, spec).dequantize().T - x @ w.T).square().sum())
    return total


@pytest.mark.parametrize("spec", [INT4, QuantSpec("int3", "group:8", symmetric=False)], ids=str)
def test_the_scale_is_the_best_of_the_grid(spec):
    block, calls = outlying()
    [found] = awq_scales(block, scale_transfers(block, *calls[0]).found, calls, spec)
    size = torch.cat([block.norm(*args).detach() for args, _ in calls]).abs().mean(0)
    tried = {k: size ** (k / GRID) for k in range(GRID)}
    tried = {k: s / (s.max() * s.min()).sqrt() for k, s in tried.items()}
    errors = {k: output_error(block, calls, s, spec) for k, s in tried.items()}
    best = min(errors, key=errors.get)
    assert 0 < best == round(found.alpha * GRID)
    torch.testing.assert_close(found.scale, tried[best])
    assert found.error == pytest.approx(errors[best], rel=1e-3)
    assert found.unscaled == pytest.approx(errors[0], rel=1e-3)
    assert found.error < 0.7 * found.unscaled


def test_a_scaled_block_is_rounded_with_that_error():
    block, calls = outlying()
    block.requires_grad_(False)
    exact = [y for args, _ in calls for y in block(*args)]
    [found] = awq_scales(block, scale_transfers(block, *calls[0]).found, calls, INT4)
    apply(block, found.transfer, found.scale, calls[0])
    for layer in (block.a, block.b):
        layer.weight.data = quantize_tensor(layer.weight.data, INT4).dequantize()
    round_weight = [y for args, _ in calls for y in block(*args)]
    error = sum(float((x - y).square().sum()) for x, y in zip(exact, round_weight, strict=True))
    assert error == pytest.approx(found.error, rel=1e-3)


def test_another_way_of_rounding_is_searched_for_itself():
    block, calls = outlying()
    chosen = scale_transfers(block, *calls[0]).found
    [found] = awq_scales(block, chosen, calls, INT4, round_weight=lambda w: w)
    assert found.alpha == 0
    assert found.error == 0
    assert torch.equal(found.scale, torch.ones(16))


def test_channels_without_input_keep_their_one():
    block, calls = outlying()
    block.norm.weight.data[5] = block.norm.bias.data[5] = 0
    chosen = scale_transfers(block, *calls[0]).found
    [found] = awq_scales(block, chosen, calls, INT4)
    assert found.alpha > 0
    assert found.scale[5] == 1
    assert smooth_scales(block, chosen, calls)[0][5] == 1


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "opt"])
def test_all_folds_of_a_block_get_scales_that_keep_it(name):
    model = network(name)
    block = blocks(model)[0]
    call = recorded(model, block)
    found = scale_transfers(block, *call).found
    for scaling in awq_scales(block, found, [call], INT4):
        assert scaling.error <= scaling.unscaled
        apply(block, scaling.transfer, scaling.scale, call)
    for transfer, scale in zip(found, smooth_scales(block, found, [call]), strict=True):
        apply(block, transfer, scale, call)


def test_every_expert_is_read_with_its_own_inputs():
    model = network("mixtral")
    block = blocks(model)[0]
    call = recorded(model, block)
    inputs = []
    hook = block.mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
    shared, own = reader_statistics(block, scale_transfers(block, *call).found[2:], [call, call])
    hook.remove()
    x, experts = inputs[0], block.mlp.experts
    router, *first = shared
    torch.testing.assert_close(router.mean, x.abs().mean(0))
    chosen = (x @ block.mlp.gate.weight.T).topk(2).indices
    for e, (into, out) in enumerate(zip(first, own, strict=True)):
        rows = x[(chosen == e).any(1)]
        gate, up = (rows @ experts.gate_up_proj[e].T).chunk(2, -1)
        middle = nn.functional.silu(gate) * up
        assert into.gram.rows == out.gram.rows == 2 * len(rows)
        torch.testing.assert_close(into.gram.hessian[0], 2 * rows.T @ rows / len(rows), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.peak, middle.abs().amax(0), atol=1e-5, rtol=1e-4)
        assert torch.equal(out.weight, experts.down_proj[e])
        width = middle.shape[1]
        assert out.channels.tolist() == list(range(e * width, (e + 1) * width))


def test_smoothing_is_the_formula():
    block, calls = outlying()
    [scale] = smooth_scales(block, scale_transfers(block, *calls[0]).found, calls, alpha=0.3)
    reach = torch.cat([block.norm(*args).detach() for args, _ in calls]).abs().amax(0)
    columns = torch.maximum(block.a.weight.detach().abs().amax(0), block.b.weight.detach().abs().amax(0))
    torch.testing.assert_close(scale, reach**0.3 / columns**0.7)
