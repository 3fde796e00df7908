"""The model's own class, as narrow as the pruned graph, from the result or from a folder without a pickle."""

import copy

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import RecipeError, RewriteError, SavedFolderError, TaskError
from tersor.pipeline.graph.pruning.named.narrowed import composed
from tests.network.groups.nets import made
from tests.pipeline.pruning.test_prune import run, task_of


@pytest.mark.parametrize(
    "name", ["resnet", "resnext", "padded", "mobilenetv3", "excite", "densenet", "unet", "yolo", "crnn", "qkv"]
)
def test_the_class_computes_what_the_graph_computes(name):
    task = task_of(name)
    done = run(task, target="1.3x macs", rounds=1, score="fisher")
    x = next(iter(task.calibration()))[0]
    small = tersor.narrow(task.model, done)
    assert type(small) is type(task.model)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in task.model.parameters())
    with torch.no_grad():
        out = small(x)
    for a, b in zip(*([v] if isinstance(v, torch.Tensor) else v for v in (done(x), out)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "where"), [("wavenet", "the model"), ("parted", "the model")])
def test_code_that_computes_with_sizes_of_its_own_is_named(name, where):
    task = task_of(name)
    done = run(task, target="1.3x macs", rounds=1, score="fisher")
    with pytest.raises(RewriteError, match=f"the code of {where} .* fixes a size that pruning changed"):
        tersor.narrow(task.model, done)


def test_what_was_rearranged_is_named():
    done = run(task_of("shuffle"), target="1.3x macs", rounds=1, score="fisher")
    with pytest.raises(RewriteError, match="became two layers or was rearranged"):
        tersor.narrow(task_of("shuffle").model, done)


class Attention(nn.Module):
    """Sizes as attributes, as models in transformers have them."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.all, self.scale = self.heads * self.size, self.size**-0.5
        self.q, self.k, self.v = (nn.Linear(width, self.all) for _ in range(3))
        self.out = nn.Linear(self.all, width)

    def forward(self, x):
        q, k, v = (
            layer(x).view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return x + self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.all))


class DefaultScale(Attention):
    """The same with a scale that depends on the size of a head."""

    def __init__(self):
        super().__init__()
        self.scale = None


class Fixed(Attention):
    """The same with a size in the code."""

    def forward(self, x):
        q, k, v = (
            layer(x).view(x.shape[0], x.shape[1], 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


def attention(kind):
    torch.manual_seed(0)
    net = nn.Sequential(kind(), nn.Linear(16, 3)).eval()
    data = [(torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(1)),)]
    return tersor.Task("attention", net, (torch.zeros(2, 5, 16),), lambda: data)


def test_integers_that_were_equal_to_a_size_follow():
    task = attention(Attention)
    done = run(task, target="50% channels", rounds=1, score="fisher", layers="0.[qkv]")
    small = tersor.narrow(task.model, done)
    assert small[0].q.out_features == 4
    assert (small[0].heads, small[0].size, small[0].all) == (2, 2, 4)
    x = next(iter(task.calibration()))[0]
    with torch.no_grad():
        torch.testing.assert_close(small(x), done(x), rtol=1e-4, atol=1e-5)
    assert task.model[0].heads == 4


def test_a_size_in_the_code_is_named():
    task = attention(Fixed)
    done = run(task, target="50% channels", rounds=1, score="fisher", layers="0.[qkv]")
    with pytest.raises(RewriteError, match=r"the code of 0 \(Fixed\) fixes a size that pruning changed"):
        tersor.narrow(task.model, done)


def test_a_scale_that_depends_on_a_size_is_found_by_comparing():
    task = attention(DefaultScale)
    done = run(task, target="50% channels", rounds=1, score="fisher", layers="0.[qkv]")
    with pytest.raises(RewriteError, match=r"is not that of the pruned graph .* the default scale of attention"):
        tersor.narrow(task.model, done)


def test_a_folder_without_a_pickle_and_a_fresh_instance(tmp_path):
    task = task_of()
    done = run(task, target="1.5x macs", rounds=2)
    done.narrowed.save(tmp_path / "small")
    assert sorted(p.name for p in (tmp_path / "small").iterdir()) == [
        "check.safetensors", "manifest.json", "model.safetensors",
    ]  # fmt: skip
    done.narrowed.save(tmp_path / "small", force=True)
    with pytest.raises(SavedFolderError, match=r"tersor\.narrow"):
        tersor.load(tmp_path / "small")
    fresh = made("resnet")[0]
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    small = tersor.narrow(fresh, tmp_path / "small")
    x = next(iter(task.calibration()))[0]
    with torch.no_grad():
        torch.testing.assert_close(small(x), done(x), rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(small)
    again.load_state_dict(tersor.narrow(task.model, done).state_dict())


def test_what_does_not_fit_is_refused(tmp_path):
    task = task_of()
    done = run(task, target="1.5x macs", rounds=1)
    with pytest.raises(TaskError, match=r"has no tensor"):
        tersor.narrow(nn.Linear(2, 2), done)
    other = copy.deepcopy(task.model)
    other[3] = nn.Linear(other[3].in_features, 7)
    with pytest.raises(TaskError, match="other shapes"):
        tersor.narrow(other, done)
    with pytest.raises(SavedFolderError, match="no pruned model"):
        tersor.narrow(task.model, tmp_path)
    done.narrowed.save(tmp_path / "small")
    text = (tmp_path / "small/manifest.json").read_text()
    (tmp_path / "small/manifest.json").write_text(text.replace('"pruning"', '"pruned"'))
    with pytest.raises(SavedFolderError, match="no pruned model"):
        tersor.narrow(task.model, tmp_path / "small")
    (tmp_path / "small/manifest.json").write_text(text.replace('"base": "', '"base": "0'))
    with pytest.raises(TaskError, match="other shapes"):
        tersor.narrow(task.model, tmp_path / "small")
    gone = run(task, target="1.2x macs", rounds=1, structure="branches")
    with pytest.raises(RewriteError, match="went as a whole"):
        tersor.narrow(task.model, gone)
    whole = tersor.compress(task, engine="torch", report=False, progress=False)
    with pytest.raises(RecipeError, match="nothing was pruned here"):
        _ = whole.narrowed


def test_two_steps_are_composed():
    assert composed({"w": {0: [0, 2, 4], 1: [1]}}, {"w": {0: [2]}}) == {"w": {0: [4], 1: [1]}}
    task = task_of()
    recipe = tersor.Recipe(
        steps=[{"prune": {"target": "20% channels"}}, {"prune": {"target": "30% channels"}}, {"quantize": {}}]
    )
    done = tersor.compress(task, recipe, "torch", report=False, progress=False)
    for name, dims in done.narrowed.kept.items():
        for dim, left in dims.items():
            assert len(left) == done.narrowed.tensors[name].shape[dim]
            assert left == sorted(set(left))
            assert left[-1] < dict(done.subject.source.tensors())[name].shape[dim]


def test_grouped_convolutions_and_norms_in_groups():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 4, 1)
    ).eval()
    data = [(torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)]
    task = tersor.Task("norms", net, (torch.zeros(2, 3, 6, 6),), lambda: data)
    done = run(task, target="50% channels", rounds=1, score="magnitude")
    small = tersor.narrow(net, done)
    assert small[3].groups == small[3].out_channels == small[3].in_channels == 8
    assert small[1].num_channels == 8
    with torch.no_grad():
        torch.testing.assert_close(small(data[0][0]), done(data[0][0]), rtol=1e-4, atol=1e-5)
