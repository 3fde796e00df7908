"""What can be folded is found in every architecture, keeps the function, and is refused where it would not."""

from dataclasses import replace

import pytest
import torch
from eager_blocks import blocks, network, recorded
from torch import nn
from torch.nn import functional as F

from tersor.errors import RewriteError
from tersor.network.blocks.scale_transfers import ScaledAxis, apply, scale_transfers
from tersor.network.blocks.unchanged import difference

ATTENTION = [
    "input_layernorm.weight -> self_attn.q_proj.weight, self_attn.k_proj.weight, self_attn.v_proj.weight",
    "self_attn.v_proj.weight -> self_attn.o_proj.weight",
]
GATED = [
    *ATTENTION,
    "post_attention_layernorm.weight -> mlp.gate_proj.weight, mlp.up_proj.weight",
    "mlp.up_proj.weight -> mlp.down_proj.weight",
]
EXPERTS = [
    *ATTENTION,
    "post_attention_layernorm.weight -> mlp.gate.weight, mlp.experts.gate_up_proj",
    "mlp.experts.gate_up_proj -> mlp.experts.down_proj",
]
FOUND = {
    "llama": (GATED, {}),
    "llama eager": (GATED, {"attn_implementation": "eager"}),
    "qwen3": (GATED, {}),
    "gemma": (GATED, {}),
    "gemma2": ([*GATED[:2], GATED[2].replace("post_attention", "pre_feedforward"), GATED[3]], {}),
    "mixtral": (EXPERTS, {}),
    "mixtral eager": (EXPERTS, {"experts_implementation": "eager"}),
    "phi3": (
        [
            "input_layernorm.weight -> self_attn.qkv_proj.weight",
            "self_attn.qkv_proj.weight -> self_attn.o_proj.weight",
            "post_attention_layernorm.weight -> mlp.gate_up_proj.weight",
            "mlp.gate_up_proj.weight -> mlp.down_proj.weight",
        ],
        {},
    ),
    "gpt2": (
        [
            "ln_1.weight -> attn.c_attn.weight",
            "attn.c_attn.weight -> attn.c_proj.weight",
            "ln_2.weight -> mlp.c_fc.weight",
        ],
        {},
    ),
    "opt": (
        [
            "self_attn_layer_norm.weight -> self_attn.q_proj.weight, self_attn.k_proj.weight, self_attn.v_proj.weight",
            "self_attn.v_proj.weight -> self_attn.out_proj.weight",
            "final_layer_norm.weight -> fc1.weight",
            "fc1.weight -> fc2.weight",
        ],
        {},
    ),
    "bert": (["attention.self.value.weight -> attention.output.dense.weight"], {}),
}


def first_block(name):
    model = network(name.split()[0], **FOUND[name][1])
    block = blocks(model)[0]
    return block, recorded(model, block)


def random_scale(transfer):
    return torch.rand(transfer.size, generator=torch.Generator().manual_seed(1)) * 4 + 0.1


def none(touches):
    """The same, with no channel scaled."""
    return tuple(replace(t, channels=torch.full_like(t.channels, -1)) for t in touches)


@pytest.mark.parametrize("name", FOUND)
def test_every_architecture_folds_alike(name):
    block, call = first_block(name)
    found = scale_transfers(block, *call).found
    assert [str(transfer) for transfer in found] == FOUND[name][0]
    with torch.no_grad():
        before = block(*call[0], **call[1])
        for transfer in found:
            apply(block, transfer, random_scale(transfer), call)
        after = block(*call[0], **call[1])
    before, after = (x[0] if isinstance(x, tuple) else x for x in (before, after))
    assert difference(before, after) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt"])
def test_each_side_of_a_fold_alone_changes_the_output(name):
    """Else the scale would be one that nobody sees."""
    block, call = first_block(name)
    for transfer in scale_transfers(block, *call).found:
        for alone in (
            replace(transfer, readers=none(transfer.readers)),
            replace(transfer, sources=none(transfer.sources)),
        ):
            with pytest.raises(RewriteError, match=r"relative change .*disable this rewrite"):
                apply(block, alone, random_scale(transfer), call)


def test_heads_that_are_repeated_share_their_scale():
    block, call = first_block("llama")
    transfer = next(f for f in scale_transfers(block, *call).found if "v_proj" in f.sources[0].name)
    # 4 heads of 8 read 2 heads of values.
    assert transfer.size == 16
    wanted = torch.arange(16).reshape(2, 1, 8).expand(2, 2, 8).reshape(1, -1)
    assert torch.equal(transfer.readers[0].channels.long(), wanted)
    assert torch.equal(transfer.sources[0].channels.long(), torch.arange(16)[:, None])


@pytest.mark.parametrize(("name", "axis"), [("phi3", 0), ("gpt2", 1)])
def test_of_a_fused_projection_only_the_values_are_scaled(name, axis):
    block, call = first_block(name)
    transfer = next(f for f in scale_transfers(block, *call).found if "attn" in f.sources[0].name)
    channels = transfer.sources[0].channels.movedim(axis, 0).flatten()
    values = 32 if name == "gpt2" else 16
    assert channels[:-values].eq(-1).all()
    assert channels[-values:].tolist() == list(range(values))
    if name == "gpt2":
        assert [t.name for t in transfer.sources] == ["attn.c_attn.weight", "attn.c_attn.bias"]
        assert torch.equal(transfer.sources[1].channels, channels)


@pytest.mark.parametrize("name", ["mixtral", "mixtral eager"])
def test_experts_that_no_token_reached_stay_right(name):
    model = network("mixtral", **FOUND[name][1])
    block = blocks(model)[0]
    found = scale_transfers(block, *recorded(model, block, torch.tensor([[5]]))).found
    assert [str(transfer) for transfer in found] == EXPERTS
    shared, own = found[2:]
    assert own.size == 2 * block.mlp.experts.down_proj.shape[2]
    assert all((t.channels >= 0).all() for t in shared.readers)
    call = recorded(model, block)
    for transfer in (shared, own):
        apply(block, transfer, random_scale(transfer), call)


def test_a_wrong_fold_is_taken_back():
    block, call = first_block("qwen3")
    before = {n: p.clone() for n, p in block.named_parameters()}
    for transfer in scale_transfers(block, *call).found:
        wrong = replace(transfer, readers=tuple(ScaledAxis(t.name, t.channels.roll(1, -1)) for t in transfer.readers))
        with pytest.raises(RewriteError, match=rf"^{transfer.sources[0].name} -> .*relative change"):
            apply(block, wrong, random_scale(transfer), call)
    assert all(torch.equal(p, before[n]) for n, p in block.named_parameters())


@pytest.mark.parametrize("scale", [[1.0], [1.0, -1.0], [1.0, float("inf")], [0.0, 1.0], [float("nan"), 1.0]])
def test_a_scale_is_a_positive_number_for_each_channel(scale):
    block = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))
    transfer = scale_transfers(block, (torch.randn(3, 2),)).found[0]
    with pytest.raises(RewriteError, match="the scale must have 2 positive elements"):
        apply(block, transfer, torch.tensor(scale))


def test_bfloat16_keeps_its_function_within_its_places():
    model = network("llama").bfloat16()
    block = blocks(model)[0]
    call = recorded(model, block)
    for transfer in scale_transfers(block, *call).found:
        apply(block, transfer, random_scale(transfer), call)
        with pytest.raises(RewriteError, match="relative change"):
            apply(block, replace(transfer, readers=none(transfer.readers)), random_scale(transfer), call)


def test_what_was_recorded_in_inference_mode_is_as_good():
    model = network("llama")
    block = blocks(model)[0]
    with torch.inference_mode():
        call = recorded(model, block)
    assert call[0][0].is_inference()
    assert [str(transfer) for transfer in scale_transfers(block, *call).found] == GATED


class Pair(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.between = between

    def forward(self, x):
        return self.between(self, x)


def through_buffer(m, x):
    """The channels go into a buffer through a view of it, and from there past the layer."""
    buffer = torch.zeros(len(x), 12)
    buffer[:, :6] = m.a(x)
    return m.b(m.a(x)), buffer.sum(1)


NOT = {
    "gelu does not commute with a scale": lambda m, x: m.b(F.gelu(m.a(x))),
    "it leaves the block": lambda m, x: (m.b(m.a(x)), m.a(x)),
    "it is added to a value with another scale": lambda m, x: m.b(m.a(x) + x.repeat(1, 2)[:, :6]),
    "it is multiplied by a value with its own scale": lambda m, x: m.b(m.a(x) * m.a(x)),
    "it is a divisor": lambda m, x: m.b(x[:, :1] / m.a(x)),
    "copy_ does not commute with a scale": through_buffer,
    "a weight is used with two different scales": lambda m, x: m.b(m.a(x)) + m.b(x.repeat(1, 2)[:, :6]),
    "a.weight: sum reads it, which is not a matrix product": lambda m, x: m.b(m.a(x)) * m.a.weight.sum(),
    "b.weight: mul reads it, which is not a matrix product": lambda m, x: m.b(m.a(x)) + (m.b.weight * 2).sum(),
    "its bias is computed": lambda m, x: m.b(F.linear(x, m.a.weight, m.a.bias.abs() + 1)),
    "its rows have different scales": lambda m, x: m.b(m.a(x)[:, [0, 1, 2, 3, 4, 5]].T.reshape(-1, 6)),
    "max does not commute with a scale": lambda m, x: m.b(m.a(x)) if m.a(x).max() > 9 else m.c(m.a(x)),
    "unsqueeze reads it, which is not a matrix product": lambda m, x: m.b(torch.einsum("nk,ok->no", x, m.a.weight)),
}


@pytest.mark.parametrize("reason", NOT)
def test_what_lets_no_scale_through_says_why(reason):
    block, x = Pair(NOT[reason]), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = scale_transfers(block, (x,))
    assert not any(f.sources[0].name == "a.weight" for f in found.found)
    assert found.refused["a.weight"] == reason


def test_one_channel_that_cannot_be_scaled_leaves_the_others():
    block, x = Pair(lambda m, x: (m.b(m.a(x)), m.a(x)[:, 2])), torch.randn(3, 4)
    transfer = scale_transfers(block, (x,)).found[0]
    assert transfer.sources[0].channels.flatten().tolist() == [0, 1, -1, 2, 3, 4]
    assert transfer.readers[0].channels.flatten().tolist() == [0, 1, -1, 2, 3, 4]
    apply(block, transfer, random_scale(transfer), ((x,), {}))


YES = {
    "relu in place": lambda m, x: m.b(m.a(x).relu_()),
    "a product with data": lambda m, x: m.b(m.a(x) * x[:, :1].exp()),
    "columns exchanged": lambda m, x: m.b(m.a(x)[:, [3, 1, 0, 5, 4, 2]]),
    "halves glued": lambda m, x: m.b(torch.cat(m.a(x).chunk(2, -1)[::-1], -1)),
    "two readers, one transposed": lambda m, x: m.b(m.a(x)) + torch.addmm(m.c.bias, m.a(x), m.c.weight.T),
    "a bias of its own": lambda m, x: m.b(x @ m.a.weight.T + m.a.bias),
    "a part of a weight": lambda m, x: F.linear(m.a(x)[:, :3], m.b.weight[:, :3]),
    "no reason to refuse a zero": lambda m, x: m.b(F.leaky_relu(-m.a(x), 0.1) / 3),
}


@pytest.mark.parametrize("name", YES)
def test_what_lets_a_scale_through_is_found(name):
    block, x = Pair(YES[name]), torch.randn(3, 4)
    transfer = scale_transfers(block, (x,)).found[0]
    assert transfer.sources[0].name == "a.weight"
    assert transfer.size == (3 if name == "a part of a weight" else 6)
    apply(block, transfer, random_scale(transfer), ((x,), {}))
