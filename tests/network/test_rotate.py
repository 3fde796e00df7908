"""A rotated residual stream gives the same logits, and is refused where it would not."""

import pytest
import torch
from eager_blocks import IDS, blocks, network, recorded
from torch import nn
from torch.nn import functional as F

from tersor.errors import RewriteError
from tersor.network.blocks.rotate import RotationPlan, rotate_block, rotate_ends, rotation_plan
from tersor.numerics.hadamard import Rotation


def rotate(model, ids):
    """All of a network, block by block, with the plan of its first; what rotate_ends said."""
    found = blocks(model)
    calls = [recorded(model, block, ids) for block in found]
    plan = rotation_plan(found[0], *calls[0])
    rotation = Rotation(plan.size, 1)
    for block, call in zip(found, calls, strict=True):
        rotate_block(block, plan, rotation, call)
    return rotate_ends(model.get_input_embeddings(), model.get_output_embeddings(), model.model.norm, rotation)


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def assert_same(model, ids):
    before = logits(model, ids)
    notes = rotate(model, ids)
    after = logits(model, ids)
    assert (after - before).abs().max() < 1e-3
    # The test could not tell were the logits themselves that small.
    assert before.abs().max() > 0.5
    return notes


NETS = {
    "llama": {},
    "llama tied, with biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama of width 24": {"hidden_size": 24},
    "llama of width 28": {"hidden_size": 28},
    "qwen3": {},
    "gemma": {},
    "mixtral": {},
    "mixtral eager": {"experts_implementation": "eager"},
    "phi3": {},
}


@pytest.mark.parametrize("name", NETS)
def test_the_logits_stay(name):
    model = network(name.split()[0], **NETS[name])
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == ("tied" in name or name == "gemma")
    weights = {n: p.clone() for n, p in model.named_parameters()}
    notes = assert_same(model, IDS)
    assert bool(notes) == tied
    changed = {n for n, p in model.named_parameters() if n in weights and not torch.equal(p, weights[n])}
    left = weights.keys() - changed
    # What neither reads nor writes the stream: norms of heads, and biases of what reads.
    assert all("q_norm" in n or "k_norm" in n or n.endswith("bias") for n in left), left
    head = model.get_output_embeddings().weight
    assert head is not model.get_input_embeddings().weight


@pytest.mark.real
def test_a_trained_network_keeps_its_logits_and_loses_its_outliers(shared, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scripts.stories260k import write

    write(tmp_path, shared / "data/stories260k")
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    text = "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park."
    ids = AutoTokenizer.from_pretrained(tmp_path)(text, return_tensors="pt").input_ids

    def crest():
        with torch.no_grad():
            x = model(ids, output_hidden_states=True, use_cache=False).hidden_states[3]
        return float((x.abs().amax(-1) / x.square().mean(-1).sqrt()).mean())

    before = crest()
    assert assert_same(model, ids) == ("head and embedding shared their weight; each has its own now",)
    assert crest() < before


def test_of_experts_all_turn():
    model = network("mixtral")
    block = blocks(model)[0]
    plan = rotation_plan(block, *recorded(model, block, torch.tensor([[5]])))
    assert plan.readers["mlp.experts.gate_up_proj"].axis == 2
    assert plan.writers == {"self_attn.o_proj.weight": 0, "mlp.experts.down_proj": 1}
    assert plan.readers["mlp.gate.weight"].norm.name == "post_attention_layernorm.weight"
    rotate_block(block, plan, Rotation(32), recorded(model, block))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt2", "only networks with RMSNorm can be rotated"),
        ("opt", "only networks with RMSNorm can be rotated"),
        ("gemma2", r"not the output of linear layers alone \(a norm after them"),
    ],
)
def test_what_cannot_be_rotated_says_why(name, reason):
    model = network(name)
    block = blocks(model)[0]
    with pytest.raises(RewriteError, match=reason):
        rotation_plan(block, *recorded(model, block))


def test_a_final_layer_norm_is_refused_before_anything_changes():
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5)
    before = embedding.weight.clone()
    with pytest.raises(RewriteError, match="subtracts the mean"):
        rotate_ends(embedding, head, nn.LayerNorm(4), Rotation(4))
    assert torch.equal(embedding.weight, before)


def test_another_size_is_refused():
    model = network("llama")
    block = blocks(model)[0]
    with pytest.raises(RewriteError, match="width 32, the rotation has size 64"):
        rotate_block(block, rotation_plan(block, *recorded(model, block)), Rotation(64))
    with pytest.raises(RewriteError, match="widths 32 and 32, the rotation 64"):
        rotate_ends(model.model.embed_tokens, model.lm_head, model.model.norm, Rotation(64))


@pytest.mark.parametrize("left_out", ["writers", "readers"])
def test_a_wrong_plan_is_taken_back(left_out):
    model = network("qwen3")
    block = blocks(model)[0]
    call = recorded(model, block)
    plan, before = rotation_plan(block, *call), {n: p.clone() for n, p in block.named_parameters()}
    parts = {n: dict(getattr(plan, n)) for n in ("writers", "readers")}
    parts[left_out].popitem()
    with pytest.raises(RewriteError, match="rotating the residual stream: the relative change of the block's output"):
        rotate_block(block, RotationPlan(plan.size, **parts), Rotation(32), call)
    assert all(torch.equal(p, before[n]) for n, p in block.named_parameters())


class Block(nn.Module):
    """A pre-norm block whose inside a test gives."""

    def __init__(self, inside):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down, self.side = nn.RMSNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)
        self.inside = inside

    def forward(self, x):
        return self.inside(self, x)

    def mlp(self, x):
        return self.down(F.silu(self.up(x)))


def two_uses(m, x):
    written = m.mlp(m.norm(x))
    return x + written + m.side(written.tanh())


def through_a_part(m, x):
    """Zeros that are none any more when they are added."""
    buffer = torch.zeros_like(x)
    buffer[:, :2] = x.new_ones(2)
    return x + m.mlp(m.norm(x)) + buffer


def through_a_view(m, x):
    """Zeros that are written to under another name."""
    buffer = torch.zeros_like(x)
    view = buffer.view(-1, 8)
    view += m.side(m.norm(x))
    return x + m.mlp(m.norm(x)) + buffer


def through_a_copy(m, x):
    """A copy of the stream, in which a row is overwritten."""
    copy = x.clone()
    copy[0] = 1
    return x + m.side(copy)


NOT = {
    "not the output of linear layers alone": lambda m, x: x + torch.sigmoid(m.side(m.norm(x))),
    "silu reads it after norm.weight": lambda m, x: x + m.down(F.silu(m.norm(x)).repeat(1, 2)),
    "gelu reads it and": lambda m, x: F.gelu(x) + m.mlp(m.norm(x)),
    "writes to the residual stream, and tanh reads its output": two_uses,
    "the block's output is not the sum of its input": lambda m, x: m.mlp(m.norm(x)),
    "the block's output reads it and": lambda m, x: (x + m.mlp(m.norm(x)), x),
    "slice reads it and": lambda m, x: x + m.down(F.pad(x[:, :4], (0, 12))),
    "up.weight reads the residual stream in two ways": lambda m, x: x + m.mlp(m.norm(x)) + m.mlp(x),
    "added to the residual stream is not the output": through_a_part,
    "output of linear layers alone": through_a_view,
    "fill_ reads it and": through_a_copy,
}


@pytest.mark.parametrize("reason", NOT)
def test_a_block_that_does_not_turn_is_refused(reason):
    with pytest.raises(RewriteError, match=reason):
        rotation_plan(Block(NOT[reason]), (torch.randn(3, 8),))


YES = {
    "without a norm": lambda m, x: x + m.mlp(x),
    "scaled": lambda m, x: 2 * x + 0.5 * m.mlp(m.norm(x)),
    "side by side": lambda m, x: x + m.mlp(m.norm(x)) + m.side(m.norm(x)),
    "gated rows": lambda m, x: x + m.mlp(m.norm(x)) * torch.sigmoid(m.side(x)[:, :1]),
    "a norm in pieces": lambda m, x: x + m.mlp(x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * m.norm.weight),
    "picked rows": lambda m, x: torch.zeros_like(x).index_add(0, torch.tensor([2, 0]), m.mlp(m.norm(x)[[2, 0]])) + x,
    "other dimensions moved": lambda m, x: (x.unsqueeze(1) + m.mlp(m.norm(x)).unsqueeze(1)).transpose(0, 1).squeeze(0),
}


@pytest.mark.parametrize("name", YES)
def test_a_block_that_turns_is_rotated(name):
    block, x = Block(YES[name]), torch.randn(3, 8)
    nn.init.normal_(block.norm.weight)
    plan, before, rotation = rotation_plan(block, (x,)), block(x).detach(), Rotation(8)
    rotate_block(block, plan, rotation, ((x,), {}))
    torch.testing.assert_close(block(rotation(x)).detach(), rotation(before), atol=1e-5, rtol=1e-5)
    assert "down.weight" in plan.writers
