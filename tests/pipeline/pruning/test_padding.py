"""Padding tokens decide nothing: neither what goes, nor how the rest is repaired."""

import pytest
import torch
from torch import nn

import tersor
from tersor.network.groups import branches
from tersor.network.network import walk
from tersor.pipeline.graph.compress import compress
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.graph.pruning.branches import without
from tersor.pipeline.graph.pruning.padding import Padded, padded
from tersor.pipeline.graph.pruning.trials import Trial, losses
from tersor.recipe import Prune, Quantization, Quantize, Recipe

FLOAT = Quantize(weights=Quantization(format="fp32"), activations=Quantization(format="fp32"), bias_correction=False)


class Tokens(nn.Module):
    """A vector for each token, with a branch; token 0 pads, and is far from all others."""

    def __init__(self, padding=40.0):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.embedding.weight[0] = padding * torch.randn(8)

    def forward(self, ids):
        x = self.embedding(ids)
        return self.head(x + self.second(self.first(x).relu()))


def batches():
    """The same real tokens with and without padding; the lengths are multiples, so that both have one shape."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (64, 4), generator=generator)
    return torch.cat((ids, torch.zeros(64, 3, dtype=torch.long)), 1), ids


def task_of(ids, mask=True, padding=40.0):
    return tersor.Task(
        name="tokens", model=Tokens(padding).eval(), example=(ids[:2],), calibration=lambda: [(ids,)],
        token_mask=(lambda x: x != 0) if mask else None,
    )  # fmt: skip


def pruned(ids, step, **options):
    done = compress(task_of(ids, **options), Recipe(steps=(step, FLOAT)), "torch", report=False, progress=False)
    assert not done.prunings[0].notes
    return done


@pytest.mark.parametrize(
    "step",
    [
        Prune(target="50% channels", score="wanda"),
        Prune(target="1.5x macs", score="wanda", repair="shift"),
        Prune(target="50% weights", score="wanda"),
        Prune(target="50% channels", score="apoz", repair="none"),
    ],
    ids=lambda s: f"{s.target} {s.score}",
)
def test_the_result_is_that_of_the_real_tokens_alone(step):
    long, short = batches()
    found, wanted, wrong = pruned(long, step), pruned(short, step), pruned(long, step, mask=False)
    y = walk(wanted.network, (short,))[0]
    assert torch.allclose(walk(found.network, (long,))[0][:, :4], y, atol=1e-4)
    assert not torch.allclose(walk(wrong.network, (long,))[0][:, :4], y, atol=1e-2)


def test_losses_of_branches_are_those_of_the_real_tokens_alone():
    long, short = batches()
    found = list[list[float]]()
    for ids in (long, short):
        task = task_of(ids)
        network, batch = captured(task), padded(task, (ids,))
        assert isinstance(batch, Padded)
        (trial,) = without(network, branches(network), [batch])
        assert isinstance(trial, Trial)
        found.append(losses(network, network, [trial], [batch]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("score", ["obs", "fisher", "taylor"])
def test_scores_by_gradients_do_not_see_padding(score):
    long, _ = batches()
    step = Prune(target="50% channels", score=score, repair="none", rounds=1)
    near, far, unmasked = (
        pruned(long, step, padding=padding, mask=mask).prunings[0].kept
        for padding, mask in ((0.1, True), (40.0, True), (40.0, False))
    )
    assert near == far
    assert unmasked != far
