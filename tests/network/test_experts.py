"""Experts and their routers, found by how many there are."""

import torch
from torch import nn

from tersor.network.blocks.experts import find_experts


class Own(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def block(**parts):
    return nn.ModuleDict({"attention": nn.Linear(8, 4), **parts})


def found(mixture, **config):
    model = nn.ModuleDict({"layers": nn.ModuleList(block(mixture=mixture) for _ in range(4))})
    experts = find_experts(model, config, "layers.")
    return {s.removeprefix("layers.0.") for s in experts.stacks if ".0." in s}, {
        r.removeprefix("layers.0.") for r in experts.routers if r.startswith("layers.0.")
    }


def test_experts_in_one_tensor_and_in_a_list_have_their_router_beside_them():
    names = {"mixture.scores.weight", "mixture.shared_gate.weight"}
    parts = {"scores": nn.Linear(8, 4), "shared_gate": nn.Linear(8, 1), "shared": nn.Linear(8, 6)}
    fused = nn.ModuleDict({**parts, "all": Own(4, 6, 8)})
    assert found(fused, num_local_experts=4) == ({"mixture.all"}, names)
    listed = nn.ModuleDict({**parts, "all": nn.ModuleList(nn.Linear(8, 6) for _ in range(4))})
    assert found(listed, text_config={"n_routed_experts": 4}) == ({"mixture.all"}, names)


def test_what_only_looks_like_them_is_none():
    mixer = nn.ModuleDict({"conv1d": nn.Conv1d(4, 4, 3, groups=4), "step": nn.Linear(8, 4)})
    assert found(mixer, num_experts=4) == (set(), set())
    assert found(nn.ModuleDict({"all": Own(4, 6, 8), "scores": nn.Linear(8, 4)}), hidden_size=4) == (set(), set())
