"""Blocks called one by one: what they return besides their hidden states, and what the model does between them."""

import pytest
import torch
from torch import nn

from tersor.errors import CaptureError
from tersor.network.blocks.calls import calls, check_second, probe, run_tail
from tersor.network.blocks.chain import Blocks


class Block(nn.Module):
    """It returns a bias that the first of them makes, and the others hand on, or each makes anew."""

    def __init__(self, anew):
        super().__init__()
        self.linear, self.anew = nn.Linear(4, 4), anew

    def made(self, hidden):
        return self.linear.weight[0].detach().expand_as(hidden)

    def forward(self, hidden, bias):
        own = self.made(hidden) if bias is None or self.anew else bias
        return hidden + self.linear(hidden) + own, own, None


class Model(nn.Module):
    def __init__(self, between=lambda x: x, handed=lambda bias, x: bias, anew=False, layout=lambda x: x, skipped=()):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Embedding(9, 4), nn.ModuleList(Block(anew) for _ in range(3))
        self.between, self.handed, self.layout, self.skipped = between, handed, layout, skipped

    def forward(self, ids):
        x, bias = self.layout(self.embed(ids)), None
        for block in [b for k, b in enumerate(self.blocks) if k not in self.skipped]:
            x, bias, nothing = block(x, bias)
            assert nothing is None
            x, bias = self.between(x), self.handed(bias, x)
        return x


IDS = torch.tensor([[1, 2, 3]])


def blocks_of(model):
    return Blocks("blocks", model.blocks)


@torch.no_grad()
def test_what_blocks_pass_on_is_that_of_each_batch():
    model = Model()
    blocks = blocks_of(model)
    hidden, returned = probe(model, blocks, {"ids": IDS})
    assert returned.passed_on
    assert hidden.shape == (1, 3, 4)
    recorded = calls(model, blocks, {"ids": IDS + 2}, returned)
    x = recorded[0][0][0]
    for block, ((_, *args), kwargs) in zip(model.blocks, recorded, strict=True):
        x = block(x, *args, **kwargs)[0]
    assert torch.allclose(x, model(IDS + 2))
    assert torch.equal(run_tail(model, blocks, {"ids": IDS}, x, returned), x)
    check_second(blocks, returned, recorded)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"between": lambda x: x / 2}, "changes the hidden states between blocks.0 and blocks.1"),
        ({"handed": lambda bias, x: x.mean(-1, keepdim=True)}, "an argument of blocks.1 is computed from the outputs"),
        ({"skipped": (1,)}, "does not call blocks.1 for this text"),
        ({"layout": lambda x: x.transpose(0, 1)}, r"blocks.0 is called with \(3, 1, 4\), not with hidden states"),
    ],
    ids=["between", "argument", "skipped", "layout"],
)
def test_what_ties_blocks_together_is_refused(change, text):
    model = Model(**change)
    with pytest.raises(CaptureError, match=text):
        probe(model, blocks_of(model), {"ids": IDS})


@pytest.mark.parametrize("change", [{"anew": True}, {"handed": lambda bias, x: bias / 2}], ids=["anew", "halved"])
def test_what_each_block_makes_for_the_next_is_refused(change):
    model = Model(**change)
    blocks = blocks_of(model)
    _, returned = probe(model, blocks, {"ids": IDS})
    assert returned.passed_on
    with pytest.raises(CaptureError, match=r"blocks.1 returns something else besides its hidden states than blocks.0"):
        check_second(blocks, returned, calls(model, blocks, {"ids": IDS}, returned, count=2))


class Remembering(Block):
    """It adds what it was called with before."""

    def forward(self, hidden, bias):
        self.before = getattr(self, "before", 0) + hidden
        return (self.before, *super().forward(hidden, bias)[1:])


def test_blocks_that_keep_a_state_are_refused():
    model = Model()
    model.blocks[0] = Remembering(False)
    with pytest.raises(CaptureError, match=r"blocks.0 computes something else when it is called again \(a cache"):
        probe(model, blocks_of(model), {"ids": IDS})
