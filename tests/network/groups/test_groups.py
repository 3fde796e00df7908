"""Groups: what they take with them, and that a network cut computes what it computes with zeros."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.network.capture import capture
from tersor.network.groups import checked, cut, find, macs, parameters, table, zeroed
from tersor.network.groups.check import TOLERANCE, difference
from tersor.network.groups.cut import Kept
from tersor.network.network import walk
from tests.network.groups.nets import NETS, made


def structure(name):
    net, example = made(name)
    return find(capture(net, example))


def found(net, *example):
    return find(capture(net.eval(), example))


def names(these):
    return {g.name: len(g) for g in these.groups}


def half(these):
    return [a for g in these.groups for a in g.atoms[: max(1, len(g) // 2)].tolist()]


@pytest.mark.parametrize("name", NETS)
def test_cut_is_zeroed_and_at_least_a_third_can_go(name):
    these = structure(name)
    removed = half(these)
    assert difference(these, removed) <= TOLERANCE
    assert macs(cut(these, removed)) <= 0.7 * macs(these.network)
    assert parameters(cut(these, removed)) < parameters(these.network)
    out, changed = these.network(*these.network.example), zeroed(these, removed)(*these.network.example)
    pairs = zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (out, changed)), strict=True)
    assert all((a - b).abs().max() > 1e-4 for a, b in pairs)
    assert len(checked(these).groups) == len(these.groups)


@pytest.mark.parametrize("name", NETS)
def test_each_atom_alone(name):
    these = structure(name)
    for group in these.groups:
        assert difference(these, group.atoms[-1:].tolist()) <= TOLERANCE, group.name


def test_the_traced_values_are_those_of_the_smaller_network():
    for name in ("yolo", "crnn", "grouped-queries"):
        these = structure(name)
        small = cut(these, half(these))
        again = {n.name: n for n in small.graph.nodes}
        shapes = {}

        def seen(node, value, shapes=shapes):
            if isinstance(value, torch.Tensor):
                shapes[node.name] = value.shape

        walk(small, small.example, seen)
        for key, shape in shapes.items():
            traced = again[key].meta["val"].shape
            assert [int(s) for s in traced if isinstance(s, int)] == [
                n for n, s in zip(shape, traced, strict=True) if isinstance(s, int)
            ]


def test_residual_sums_tie_their_layers():
    these = structure("resnet")
    stream = next(g for g in these.groups if ("0.0.0.weight", 0) in g.sites)
    assert {name for name, dim in stream.sites if dim == 0 and name.endswith("2.0.weight")} == {
        "0.1.body.2.0.weight", "0.2.body.2.0.weight"
    }  # fmt: skip
    assert ("3.weight", 1) in stream.sites


def test_heads_go_with_queries_keys_and_values():
    sizes = {"qkv": 4, "chunked": 4, "parted": 4, "grouped-queries": 2}
    for name, count in sizes.items():
        these = structure(name)
        heads = next(g for g in these.groups if len(g) == count and ("o.weight", 1) in g.sites)
        assert heads.sites["o.weight", 1].shape[1] == 24 // count


def test_a_padded_shortcut_goes_with_what_it_is_added_to():
    these = structure("padded")
    kept = Kept(these, half(these))
    assert difference(these, half(these)) <= TOLERANCE
    assert kept.count(these.flow.tensors["body.0.0.weight"][0]) < 16


def test_flattened_pixels_go_with_their_channel():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    these = found(net, torch.randn(2, 3, 6, 6))
    (group,) = these.groups
    assert group.sites["3.weight", 1].tolist() == [list(range(36 * k, 36 * k + 36)) for k in range(4)]


def test_what_is_normalized_over_channels_is_fixed_and_says_so():
    these = structure("qkv")
    assert ("o.weight", 0) in these.fixed
    normed = found(nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(2, 3))
    assert "layer_norm takes the mean of them" in normed.fixed["0.weight", 0]
    assert "output" in found(nn.Linear(3, 4), torch.randn(2, 3)).fixed["weight", 0]
    assert "input" in found(nn.Linear(3, 4), torch.randn(2, 3)).fixed["weight", 1]


def thrice(x):
    return x[:, :, None].repeat(1, 1, 3)


class Softmax(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.a, self.b, self.of = nn.Linear(4, 8), nn.Linear(8, 3), of

    def forward(self, x):
        return self.b(self.of(self.a(x)))


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (lambda x: x.softmax(-1), "softmax"),
        (lambda x: x - x.mean(-1, keepdim=True), "mean"),
        (lambda x: x.cumsum(-1), "cumsum"),
        (lambda x: x.sort(-1)[0], "sort"),
        (lambda x: x.flip(-1), "flip"),
        (lambda x: x.roll(1, -1), "roll"),
        (lambda x: x * (x + 1).norm(dim=-1, keepdim=True), "norm"),
        (lambda x: torch.fft.rfft(x, dim=-1).abs().repeat(1, 2)[:, :8], "fft"),
        (lambda x: F.normalize(x.exp(), dim=-1), "norm"),
        (lambda x: x[:, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])], "chosen by number"),
        (lambda x: x[:, ::2].repeat(1, 2), "single positions"),
        (lambda x: x.unfold(1, 4, 4).flatten(1), "windows"),
        (lambda x: x / x.amax(-1, keepdim=True), "amax"),
        (lambda x: x @ torch.linalg.inv(torch.eye(8) + x.T @ x), "fixed"),
        (lambda x: torch.stack(x.unbind(-1), -1), "unbind"),
        (lambda x: F.pad(x, (1, 1), value=1.0)[:, 1:-1], "padded"),
        (lambda x: x.max(-1, keepdim=True)[0] + x, "max"),
        (lambda x: torch.where(x > x.median(-1, keepdim=True)[0], x, 0.0), "median"),
    ],
)  # fmt: skip
def test_operators_that_read_all_channels_fix_them(of, why):
    these = found(Softmax(of), torch.randn(2, 4))
    assert not these.groups
    assert why in these.fixed["a.weight", 0], these.fixed


@pytest.mark.parametrize(
    "of",
    [
        lambda x: torch.cat((x[:, :3], torch.sigmoid(x[:, 3:])), 1),
        lambda x: x.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8),
        lambda x: x.view(-1, 4, 2).mul(torch.tensor([[1.0, 2.0]])).flatten(1),
        lambda x: torch.einsum("bi->ib", x).t(),
        lambda x: x.unsqueeze(1).repeat(1, 3, 1).sum(1),
        lambda x: x.repeat_interleave(2, 1)[:, ::1].reshape(-1, 8, 2).mean(2),
        lambda x: torch.stack((x, 2 * x), 1).mean(1),
        lambda x: x * torch.ones(8) + x.new_zeros(8),
        lambda x: F.pad(x, (2, 2))[:, 2:-2],
        lambda x: torch.cat([x.narrow(1, 3, 5), *x.split([3, 5], 1)[:1]], 1),
        lambda x: x * torch.addmm(x, x @ x.T, x),
        lambda x: torch.maximum(x, torch.zeros(8)).clamp(-1, 5).pow(2),
        lambda x: x.unflatten(1, (2, 4)).movedim(1, 2).flatten(1),
        lambda x: F.channel_shuffle(x[:, :, None], 2).squeeze(2),
        lambda x: x * torch.ones(1, 1).expand(1, 8) + torch.ones(1, 1).repeat(1, 8),
        lambda x: x * x.sum(0, keepdim=True).expand_as(x) * torch.sigmoid(x.sum()).view(1, 1).expand_as(x),
        lambda x: x.gather(0, torch.zeros_like(x, dtype=torch.long)),
        lambda x: thrice(x).index_add(2, torch.tensor([2]), x[:, :, None]).sum(2),
        lambda x: thrice(x).scatter_add(2, torch.zeros_like(x, dtype=torch.long)[:, :, None], x[:, :, None]).sum(2),
        lambda x: x[:, :, None].unfold(2, 1, 1).flatten(1),
        lambda x: torch.einsum("b...,...->b...", x[:, :, None], torch.ones(8, 1)).squeeze(2),
        lambda x: torch.einsum("...j,jk", x, torch.ones(8, 8)),
        lambda x: torch.view_as_real(torch.complex(x, -x)).sum(-1) + torch.polar(x, x * 0).real,
        lambda x: torch.fft.ifft(torch.fft.fft(x, dim=0), dim=0).real,
        lambda x: F.pixel_unshuffle(F.pixel_shuffle(x[:, :, None, None], 2), 2).flatten(1),
    ],
)
def test_arrangements_are_followed(of):
    these = found(Softmax(of), torch.randn(2, 4))
    assert these.groups
    for group in these.groups:
        assert difference(these, group.atoms[:1].tolist()) <= TOLERANCE


def test_a_wrong_group_is_found_out_and_fixed(monkeypatch):
    net = nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    monkeypatch.setitem(table.RULES, "softmax", table.same)
    these = found(net, torch.randn(2, 4))
    assert names(these) == {"0.weight": 8, "2.weight": 6}
    good = checked(these)
    assert names(good) == {"2.weight": 6}
    assert "zeros in their place" in good.fixed["0.weight", 0]


def test_an_example_of_zeros_hides_nothing(monkeypatch):
    """Without noise, products of zeros would agree in any case."""
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Softmax(-1), nn.Linear(8, 3))
    monkeypatch.setitem(table.RULES, "softmax", table.same)
    assert checked(found(net, torch.zeros(2, 4))).groups == ()


def test_nothing_of_a_layer_would_be_left():
    """A group of two halves, one of which is all that a branch computes."""
    for group in structure("shuffle").groups:
        assert len(group) > 2


def test_shared_weights_go_together():
    these = structure("wide")
    shared = next(g for g in these.groups if ("shared.weight", 0) in g.sites)
    assert {("shared.weight", 1), ("out.weight", 1)} <= shared.sites.keys()


def test_a_batch_of_one_channel_and_scalars():
    these = found(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), torch.randn(2, 1))
    assert these.groups == ()
    assert macs(these.network) == 2
