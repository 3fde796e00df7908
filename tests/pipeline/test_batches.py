"""Batches are cut and joined without losing or inventing a sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parts import conv, distance, head
from torch import nn

import tersor
from tersor.pipeline.graph.batches import cut, joined, keeping, some
from tersor.pipeline.graph.measuring import predictor


@given(count=st.integers(1, 30), size=st.integers(1, 12))
def test_cut_parts_are_whole_and_their_real_samples_are_all(count, size):
    x, scalar = torch.arange(count * 2).reshape(count, 2), torch.tensor(3.0)
    parts = list(cut((x, scalar), size))
    assert all(len(part[0]) == size and part[1] is scalar for part, _ in parts)
    assert torch.equal(torch.cat([part[0][:real] for part, real in parts]), x)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), wanted=st.integers(1, 40))
def test_kept_and_joined_are_the_first_samples(sizes, wanted):
    x = torch.arange(sum(sizes))
    batches = [(part,) for part in x.split(sizes)]
    kept: list = []
    assert sum(len(b[0]) for b in keeping(iter(batches), kept, wanted)) == len(x), "all are passed on"
    assert torch.equal(joined(kept, wanted)[0], x[:wanted])
    assert len(kept) == len(list(some(iter(batches), wanted)))


def test_a_batch_of_another_shape_ends_it():
    batches = [(torch.zeros(2, 3),), (torch.zeros(2, 3),), (torch.zeros(2, 4),), (torch.zeros(2, 3),)]
    assert joined(batches, 99)[0].shape == (4, 3)


class OneByOne(nn.Module):
    """Its Python loop over the samples is unrolled, so the captured graph takes the example's batch only."""

    def __init__(self):
        super().__init__()
        self.body, self.head = conv(3, 8), head(8, 3)

    def forward(self, x):
        return torch.cat([self.head(self.body(sample[None])) for sample in x])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_a_network_of_a_fixed_batch_is_judged_on_any(size):
    torch.manual_seed(0)
    model = OneByOne().eval()
    data = [(torch.randn(8, 3, 8, 8),) for _ in range(3)]
    example = (data[0][0][:size],)
    task = tersor.Task("loop", model, example, lambda: data)
    done = tersor.compress(task, report=False, progress=False)
    assert done.network is not None
    assert not done.network.dynamic_batch
    assert "the batch size is fixed" in done.network.notes[0]
    predict = predictor(done.network, done.runner)
    with torch.no_grad():
        for batch in (1, 4, 8):
            x = data[1][0][:batch]
            assert predict(x).shape == (batch, 3)
            assert distance(predict(x), model(x)) < 0.05
