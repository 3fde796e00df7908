"""GPTQ as a recipe asks for it: through capture, Hessians and the solver, into the network."""

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import CalibrationError, TaskError
from tersor.recipe import Quantization, Recipe


class Shared(nn.Module):
    """Two layers of one input, a convolution in groups, an embedding, and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix = nn.Embedding(50, 24), nn.Linear(24, 24)
        self.q, self.k, self.twice = nn.Linear(24, 16), nn.Linear(24, 16), nn.Linear(16, 16)
        self.conv = nn.Conv1d(16, 8, 3, padding=1, groups=2)

    def forward(self, ids):
        x = self.mix(self.embed(ids))
        x = self.twice(self.twice(self.q(x) * self.k(x).sigmoid()).relu())
        return self.conv(x.transpose(1, 2))


def words(count, seed):
    return torch.randint(0, 12, (count, 10), generator=torch.Generator().manual_seed(seed))


def done(solver, bits="int3", batches=lambda: [(words(32, 0),), (words(32, 1),)]):
    weights = Quantization(format=bits, granularity="channel", range="mse", solver=solver)
    recipe = Recipe(weights=weights, activations=Quantization(format="fp32"), bias_correction=False)
    task = tersor.Task("shared", Shared().eval(), (words(1, 0),), batches)
    return tersor.compress(task, recipe, "torch", report=False, progress=False)


@pytest.fixture(scope="module")
def solved():
    return done("gptq")


def test_the_output_is_nearer_than_with_weights_rounded_to_nearest(solved):
    exact, rounded, x = Shared().eval(), done("rtn"), words(64, 5)
    with torch.no_grad():
        ours, theirs = ((net.network(x) - exact(x)).square().sum() for net in (solved, rounded))
    assert ours < 0.6 * theirs


def test_what_gptq_cannot_solve_is_named(solved):
    sites = {s.name: s for s in solved.plan.weights()}
    assert sites["embed"].solver == "rtn"
    assert "no matrix product" in sites["embed"].reason
    assert {s.solver for s in sites.values() if s.name != "embed"} == {"gptq"}


def test_an_infinite_input_names_the_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    nn.init.constant_(model[0].weight, 3e38)
    task = tersor.Task("loud", model, (torch.ones(1, 4),), lambda: [(torch.ones(2, 4),)])
    weights = Quantization(format="int4", granularity="channel", solver="gptq")
    recipe = Recipe(weights=weights, activations=Quantization(format="fp32"), bias_correction=False)
    with pytest.raises(CalibrationError, match=r"^1: 8 of the layer's inputs are NaN or infinite"):
        tersor.compress(task, recipe, "torch", report=False, progress=False)


def test_prepared_for_gptq_it_wants_data():
    prepared = tersor.prepare(Shared().eval(), "int4-gptq", (words(1, 0),), engine="torch")
    with pytest.raises(CalibrationError, match="has seen no data, and the recipe int4-gptq needs some"):
        tersor.convert(prepared)


def test_padded_positions_count_for_no_matrix(tmp_path):
    from tersor.pipeline.modules.loops import prune_iteratively

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(10, 8), nn.Linear(8, 8)

        def forward(self, ids, mask):
            return self.fc(self.embed(ids)) * mask[..., None]

    torch.manual_seed(0)
    model = Embedded().eval()
    ids = torch.randint(1, 10, (16, 6))
    mask = torch.ones(16, 6, dtype=torch.bool)
    padded = torch.nn.functional.pad(ids, (0, 9)), torch.nn.functional.pad(mask, (0, 9))
    recipe = Recipe(
        name="gptq",
        weights=Quantization(format="int3", granularity="channel", solver="gptq"),
        activations=Quantization(format="fp32"),
        bias_correction=False,
    )

    def weights(batch, **more):
        task = tersor.Task("padded", model, batch, lambda: [batch], **more)
        done = tersor.compress(task, recipe, "torch", report=False, progress=False)
        with torch.no_grad():
            return done(ids, mask)

    plain, blind = weights((ids, mask)), weights(padded)
    masked = weights(padded, token_mask=lambda ids, mask: mask)
    assert torch.allclose(masked, plain, atol=1e-5)
    assert not torch.allclose(blind, plain, atol=1e-3)
    pruned = [
        prune_iteratively(model, [batch], "50%", "sparsegpt", token_mask=mask_of).model.fc.weight
        for batch, mask_of in (((ids, mask), None), (padded, lambda batch: batch[1]), (padded, None))
    ]
    assert torch.allclose(pruned[0], pruned[1], atol=1e-5)
    assert not torch.allclose(pruned[0], pruned[2], atol=1e-3)
    former = prune_iteratively(model, [padded], "50%", "sparsegpt", counted=lambda batch: batch[1])
    assert torch.equal(former.model.fc.weight, pruned[1])
    with pytest.raises(TaskError, match="prune_iteratively got `token_mask` and `counted`, its former name"):
        prune_iteratively(model, [padded], token_mask=None, counted=None)
