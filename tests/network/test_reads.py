"""The inputs that are told of reproduce the layer's output, whatever the kind of the layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model, MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.pytorch_utils import Conv1D

from tersor.errors import CalibrationError
from tersor.network.blocks.reads import watching


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reads_of(module, *inputs, weights=None):
    """All that is told while ``module`` runs, and its output."""
    seen = []
    weights = dict(module.named_parameters()) if weights is None else weights
    weights = {n: p for n, p in weights.items() if p.ndim > 1}
    with watching(module, weights, lambda *read: seen.append(read)), torch.no_grad():
        out = module(*inputs)
    return seen, out


def computed(weights, read):
    """The product that one reading stands for."""
    name, index, transposed, x = read
    weight = weights[name] if index is None else weights[name][index]
    return x @ (weight if transposed else weight.T)


class Product(nn.Module):
    """A module that multiplies by its weight in the way of ``how``."""

    def __init__(self, how, *shape):
        super().__init__()
        self.weight = nn.Parameter(drawn(*shape, seed=1))
        self.how = how

    def forward(self, x):
        return self.how(x, self.weight)


@pytest.mark.parametrize("shape", [(5, 7), (7, 7)], ids=str)
@pytest.mark.parametrize(
    ("how", "transposed"),
    [
        (F.linear, False),
        (lambda x, w: F.linear(input=x, weight=w), False),
        (lambda x, w: F.linear(x, w.data), False),
        (lambda x, w: x @ w.t(), False),
        (lambda x, w: torch.mm(x, w.mT), False),
        (lambda x, w: (w @ x.t()).t(), False),
        (lambda x, w: torch.stack([w.matmul(row) for row in x]), False),
        (lambda x, w: torch.addmm(torch.zeros(()), x, w.t()), False),
        (lambda x, w: torch.mm(x, mat2=w.t()), False),
    ],
)
def test_every_product_with_a_matrix(how, transposed, shape):
    module, x = Product(how, *shape), drawn(4, shape[1])
    seen, out = reads_of(module, x)
    assert {read[:3] for read in seen} == {("weight", None, transposed)}
    rows = torch.cat([computed({"weight": module.weight}, read).reshape(-1, shape[0]) for read in seen])
    torch.testing.assert_close(rows, out, check_stride=False)


@pytest.mark.parametrize("how", [torch.matmul, lambda x, w: F.linear(x, w.t()), lambda x, w: (w.t() @ x.t()).t()])
def test_a_weight_stored_the_other_way_round(how):
    module, x = Product(how, 6, 6), drawn(4, 6)
    seen, out = reads_of(module, x)
    assert [read[:3] for read in seen] == [("weight", None, True)]
    torch.testing.assert_close(computed({"weight": module.weight}, seen[0]), out, check_stride=False)


def test_linear_layers_that_share_an_input_are_told_the_same_tensor():
    layers, x = nn.ModuleDict({"q": nn.Linear(6, 4), "k": nn.Linear(6, 4)}), drawn(2, 3, 6)
    layers.forward = lambda x: (layers["q"](x), layers["k"](x))
    seen, outs = reads_of(layers, x)
    assert [read[0] for read in seen] == ["q.weight", "k.weight"]
    assert seen[0][3] is seen[1][3] is x
    for read, out, name in zip(seen, outs, "qk", strict=True):
        product = computed(dict(layers.named_parameters()), read)
        torch.testing.assert_close(product + layers[name].bias, out)


def test_conv1d_of_gpt2():
    layer, x = Conv1D(5, 7), drawn(2, 3, 7)
    seen, out = reads_of(layer, x)
    assert [read[:3] for read in seen] == [("weight", None, True)]
    product = computed({"weight": layer.weight}, seen[0])
    torch.testing.assert_close((product + layer.bias).view(2, 3, 5), out)


def test_every_matrix_of_gpt2_once():
    model = GPT2Model(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)).eval()
    seen, _ = reads_of(model, torch.arange(6)[None])
    names = [f"h.{k}.{n}.weight" for k in (0, 1) for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert [read[:3] for read in seen] == [(name, None, True) for name in names]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
        (nn.Conv2d(3, 5, 3, padding="same", dilation=2), (2, 3, 7, 7)),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
    ],
)
def test_convolutions(layer, shape):
    x = drawn(*shape)
    seen, out = reads_of(layer, x)
    assert [read[:3] for read in seen] == [("weight", None, False)]
    assert seen[0][3] is x
    torch.testing.assert_close(layer(seen[0][3]), out)


def mixtral(implementation):
    config = MixtralConfig(hidden_size=8, intermediate_size=6, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = implementation
    experts = MixtralExperts(config)
    for k, p in enumerate(experts.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(k))
    return experts


def test_experts_of_mixtral():
    experts, x = mixtral("eager"), drawn(5, 8)
    chosen = torch.tensor([[0, 2], [0, 3], [2, 3], [0, 2], [3, 0]])  # nobody asks expert 1
    shares = torch.rand(5, 2, generator=torch.Generator().manual_seed(9))
    seen, out = reads_of(experts, x, chosen, shares)
    assert [read[:3] for read in seen] == [(n, k, False) for k in (0, 2, 3) for n in ("gate_up_proj", "down_proj")]
    weights = dict(experts.named_parameters())
    total = torch.zeros_like(out)
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        places, tokens = (chosen.t() == first[1]).nonzero(as_tuple=True)
        torch.testing.assert_close(first[3], x[tokens])
        gate, up = computed(weights, first).chunk(2, dim=-1)
        torch.testing.assert_close(second[3], F.silu(gate) * up)
        total.index_add_(0, tokens, computed(weights, second) * shares[tokens, places, None])
    torch.testing.assert_close(total, out)


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_experts_read_through_a_copy_are_refused(implementation):
    chosen = torch.tensor([[0, 2], [1, 3]])
    with pytest.raises(CalibrationError, match=r"gate_up_proj.*eager"):
        reads_of(mixtral(implementation), drawn(2, 8), chosen, torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 5, 6), (5, 6), (2, 3, 5, 6)], ids=str)
def test_all_experts_in_one_product(shape):
    module = Product(torch.matmul, 3, 6, 4)
    seen, out = reads_of(module, drawn(*shape))
    assert [read[:3] for read in seen] == [("weight", k, True) for k in range(3)]
    for k, read in enumerate(seen):
        torch.testing.assert_close(computed({"weight": module.weight}, read), out[..., k, :, :])


def test_a_tied_weight_is_told_under_its_first_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    model, ids = Tied(), torch.tensor([[1, 5]])
    named = dict(model.named_parameters(remove_duplicate=False))
    seen, out = reads_of(model, ids, weights=named)
    assert [read[:3] for read in seen] == [("embed.weight", None, False)]
    torch.testing.assert_close(computed(named, seen[0]), out)


def test_only_the_given_weights_and_only_inside():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    seen, _ = reads_of(model, drawn(2, 4), weights={"second": model[1].weight})
    model(drawn(2, 4))
    assert [read[0] for read in seen] == ["second"]


def test_products_of_the_watcher_are_not_told():
    layer, seen = nn.Linear(4, 4), []
    with watching(layer, {"w": layer.weight}, lambda n, i, t, x: seen.append(F.linear(x, layer.weight))):
        layer(drawn(2, 4))
    assert len(seen) == 1


def test_weights_of_one_memory_are_told_apart():
    flat = drawn(24)
    module = nn.Module()
    module.a, module.b = nn.Parameter(flat[:12].view(3, 4)), nn.Parameter(flat[12:].view(3, 4))
    module.forward = lambda x: x @ module.b.t() + x @ module.a.t()
    seen, _ = reads_of(module, drawn(2, 4))
    assert [read[0] for read in seen] == ["b", "a"]


def test_a_piece_of_a_weight_is_refused():
    module = Product(lambda x, w: F.linear(x, w[1:3]), 6, 4)
    with pytest.raises(CalibrationError, match=r"weight.*\(2, 4\) of its \(6, 4\)"):
        reads_of(module, drawn(2, 4))


def test_a_weight_of_another_module_is_refused():
    with pytest.raises(CalibrationError, match="stranger"), watching(
        nn.Linear(3, 3), {"stranger": nn.Parameter(torch.ones(3, 3))}, print
    ):
        pass
