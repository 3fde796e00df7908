"""Layers are compared with their counterparts."""

import pytest
import torch
from torch import nn

from tersor.demo.network import DigitNet
from tersor.errors import RecipeError
from tersor.training.losses import Features, paired
from tests.training.networks import Tapped, bert, captured, pictures

X = (torch.rand(2, 3, 16, 16),)
IDS = {"input_ids": torch.arange(10).reshape(2, 5)}


def pairs(layers, student, teacher, example=X, reads="features"):
    return [" ".join(dict.fromkeys(pair)) for pair in paired(layers, reads, student, teacher, example)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("layer1", ["layer1"]),
        ("layer*", ["layer1", "layer2", "layer3"]),
        ("layer*.0", ["layer1.0", "layer2.0", "layer3.0"]),
        (("layer*.0.*v", "head"), ["layer1.0.conv", "layer2.0.conv", "layer3.0.conv", "head"]),
        ((("layer1", "layer2"), ("stem", "layer1.1")), ["layer1 layer2", "stem layer1.1"]),
        ((("layer*.0", "layer*.1"),), ["layer1.0 layer1.1", "layer2.0 layer2.1", "layer3.0 layer3.1"]),
        ((("layer*.*.conv", "layer*.*.norm"), "layer1"),
         [f"layer{n}.{k}.conv layer{n}.{k}.norm" for n in (1, 2, 3) for k in (0, 1)] + ["layer1"]),
        (("layer1", "layer*"), ["layer1", "layer2", "layer3"]),
    ],
)
def test_names_and_patterns(layers, expected):
    assert pairs(layers, pictures(), pictures(1, width=8)) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("layr1", r"no layer of the student is called 'layr1' .did you mean 'layer1'"),
        ((("layer1", "layer9"),), r"no layer of the teacher is called 'layer9' .did you mean 'layer"),
        ("layer1.*", r"'layer1.\*' and 'layer1.\*' match layers without a counterpart: layer1.1; name pairs"),
        ((("layer*", "stem"),), r"without a counterpart: layer1, layer2, layer3, stem; name pairs"),
        ("", "no layer of the student is called ''"),
    ],
)
def test_names_without_layers_and_layers_without_counterparts_are_refused(layers, message):
    with pytest.raises(RecipeError, match=f"`layers`: .*{message}"):
        pairs(layers, pictures(blocks=1), pictures(blocks=2))


def test_dots_in_patterns_are_dots():
    with pytest.raises(RecipeError, match="no layer"):
        pairs("layer1x0", pictures(), pictures())
    with pytest.raises(RecipeError, match="no layer"):
        pairs("layer1?", pictures(), pictures())


def test_by_place_the_ends_of_stages_are_compared():
    assert pairs("auto", pictures(), pictures(1, width=8, blocks=3)) == ["layer1", "layer2", "layer3"]
    digits = torch.rand(2, 1, 32, 32)
    assert pairs("auto", DigitNet(), DigitNet((4, 8, 16)), (digits,)) == ["blocks.0", "blocks.1", "blocks"]


def test_of_a_layer_that_is_called_several_times_the_last_call_counts():
    pool = nn.AvgPool2d(2)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Conv2d(4, 4, 1), pool)
    assert pairs("auto", net, pictures()) == ["0 layer1", "2 layer2", "1 layer3"]


def test_stages_are_compared_at_equal_picture_sizes():
    pool = nn.AdaptiveAvgPool2d(1)  # leaves one pixel, which is no picture
    student = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(4), pool, nn.Flatten(), nn.Linear(4, 4))
    assert pairs("auto", student, pictures()) == ["0 layer1", "1 layer3"]
    assert pairs("auto", student, student) == ["0", "1"]


def test_by_place_blocks_of_transformers_are_evenly_spaced_and_the_last_ones_compared():
    def numbers(ours, theirs):
        found = paired("auto", "features", bert(blocks=ours), bert(blocks=theirs), IDS)
        assert all(a.startswith("bert.encoder.layer.") and b.startswith("bert.encoder.layer.") for a, b in found)
        return [tuple(int(name.rpartition(".")[2]) for name in pair) for pair in found]

    assert numbers(2, 2) == [(0, 0), (1, 1)]
    assert numbers(2, 6) == [(0, 2), (1, 5)]
    assert numbers(3, 4) == [(0, 0), (1, 1), (2, 3)]
    assert numbers(4, 1) == [(3, 0)]


def test_by_place_maps_of_attention_are_found_where_they_are_computed():
    found = pairs("auto", bert(), bert(1, blocks=4), IDS, "attention")
    layer = "bert.encoder.layer.{}.attention.self".format
    assert found == [f"{layer(k)} {layer(2 * k + 1)}" for k in (0, 1)]
    with pytest.raises(RecipeError, match='attn_implementation="eager"'):
        pairs("auto", bert(attention="sdpa"), bert(), IDS, "attention")


class Attention(nn.Module):
    """Attention between pixels, whose map is returned beside the result by every module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.softmax = nn.Conv2d(3, 4, 3, padding=1), nn.Softmax(-1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        maps = self.softmax(x @ x.mT)
        return (maps @ x).mean((2, 3)), maps


def test_a_map_of_attention_is_what_sums_to_one_where_it_is_first_returned():
    net = nn.Sequential(Attention())
    assert pairs("auto", net, net, reads="attention") == ["0.softmax"]
    graph = captured(net, X)
    assert pairs("auto", graph, net, reads="attention") == ["0.softmax.softmax 0.softmax"]
    recorded = []
    for module, name in ((net, "0.softmax"), (graph, "0.softmax.softmax")):
        with Features(module, [name]) as features:
            module(*X)
            recorded += features.take().values()
    torch.testing.assert_close(*recorded)


def test_a_few_blocks_at_the_end_of_a_convolutional_network_do_not_make_it_a_transformer():
    net = nn.Sequential(pictures(), nn.Unflatten(1, (1, 4)), nn.Sequential(nn.Linear(4, 4)))
    assert pairs("auto", net, net) == ["0.layer1", "0.layer2", "0.layer3"]


def test_networks_without_stages_and_blocks_are_refused_with_what_they_have():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    have = r"student: no pictures; teacher: layer1 16×16, layer2 8×8, layer3 4×4\): name the layers in pairs"
    with pytest.raises(RecipeError, match=have):
        pairs("auto", plain, pictures())


def test_by_place_changes_neither_networks_nor_randomness():
    net, other = pictures().train(), pictures(1).train()
    net.layer1.eval()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    pairs("auto", net, other)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in (net, net.layer1, net.layer1[0], net.layer2)] == [True, False, False, True]
    assert not any(m._forward_hooks for m in net.modules())


class Thin(nn.Module):
    """A stage whose last operators are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.ReLU()
        self.last = nn.Conv2d(4, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last((self.second(self.first(x)) + 1).relu())


def test_a_captured_network_is_compared_with_itself_layer_by_layer():
    for net in (Thin(), pictures()):
        expected = pairs("auto", net, net)
        assert pairs("auto", captured(net, X), net) == expected


def test_trainable_graphs_are_compared_with_the_modules_that_they_were_captured_from():
    assert pairs("layer*", Tapped(), Tapped()) == ["layer1", "layer2"]
    assert pairs("auto", Tapped(), pictures()) == ["layer1", "layer2"]
    assert pairs((("layer2.relu", "layer2"),), Tapped(), pictures()) == ["layer2.relu layer2"]
