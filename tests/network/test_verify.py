"""Every invariant of the graph is broken by hand once, and named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts import Lambda, small
from quantized import Residual
from torch import nn

from tersor.checkpoints.network import FILES, read, write
from tersor.errors import CaptureError, RecipeError, RewriteError
from tersor.network import capture as capturing
from tersor.network.capture import capture
from tersor.network.invariants import INVARIANTS
from tersor.network.network import aten, free_title, op_name, set_tensor, title
from tersor.network.planned import KINDS, PlannedLayer, Site
from tersor.network.rewrites.spaces import spaces
from tersor.network.sites import Plan
from tersor.network.verify import rewritten, verify
from tersor.numerics import QuantSpec
from tersor.recipe import Quantization


@pytest.fixture
def network():
    torch.manual_seed(0)
    return capture(Residual().eval(), (torch.zeros(2, 3, 8, 8),)).edit()


def first(network, name):
    return next(n for n in network.operators() if op_name(n) == name)


def mutable(network):
    with network.graph.inserting_before(network.graph.output_node()):
        network.graph.call_function(aten.relu_.default, (first(network, "conv2d"),))


def later(network):
    conv, mean = first(network, "conv2d"), first(network, "mean")
    conv.update_arg(0, mean)


def output_list(network):
    output = network.graph.output_node()
    output.args = (list(output.args[0]),)


def more_outputs(network):
    output = network.graph.output_node()
    output.args = ((*output.args[0], first(network, "relu")),)


def no_tensor(network):
    first(network, "conv2d").args[2].target = "nowhere.bias"


def no_reader(network):
    with network.graph.inserting_before(network.graph.output_node()):
        network.graph.call_function(aten.relu.default, (first(network, "conv2d"),))


def no_value(network):
    first(network, "relu").meta.pop("val")


def other_value(network):
    bias = first(network, "conv2d").args[2]
    set_tensor(network, bias.target, network.tensor(bias).double())


def wrong_bias(network):
    bias = first(network, "linear").args[2]
    bias.meta.pop("val")
    set_tensor(network, bias.target, torch.zeros(3))


def wrong_weight(network):
    node = first(network, "linear").args[1].args[0]
    node.meta.pop("val")
    set_tensor(network, node.target, network.tensor(node)[:, :-1].contiguous())


def parameter(name, position, value):
    def change(network):
        node = first(network, name).args[position]
        set_tensor(network, node.target, torch.full_like(network.tensor(node), value))

    return change


def no_codes(network):
    first(network, "fake_quantize").update_arg(3, 255)


def four_bits(network):
    first(network, "dequantize").meta["bits"] = 4


def wrong_groups(network):
    scale = first(network, "dequantize").args[1]
    scale.meta.pop("val")
    set_tensor(network, scale.target, torch.ones(2, 1, 1, 1))


def no_title(network):
    first(network, "add").meta.pop("title")


def same_title(network):
    first(network, "linear").meta["title"] = title(first(network, "conv2d"))


BREAKS = [
    ("operators", mutable, "writes into what it reads"),
    ("order", later, "conv2d.*: reads mean, which comes later"),
    ("output", output_list, r"output: gives \["),
    ("output", more_outputs, "gives 2 values under 1 names"),
    ("tensors", no_tensor, "no tensor nowhere.bias"),
    ("dead", no_reader, "no node reads it"),
    ("values", no_value, r"relu.*: relu has no meta\['val'\]"),
    ("stored", other_value, r"float64 \[8\], meta\['val'\] torch.float32"),
    ("layers", wrong_bias, r"bias has the shape \[3\], its weight \[5, 8\] makes 5 channels"),
    ("layers", wrong_weight, r"weight \[5, 7\] reads 7 channels, its input has 8"),
    ("quantizers", parameter("fake_quantize", 1, 0.0), "scale is from 0 to 0"),
    ("quantizers", parameter("fake_quantize", 1, float("nan")), "scale is from nan"),
    ("quantizers", parameter("fake_quantize", 2, 300.0), "zero point is from 300 to 300, its codes from 0 to 255"),
    ("quantizers", no_codes, "codes are from 255 to 255"),
    ("codes", parameter("dequantize", 1, -1.0), "scale is from -1 to -1"),
    ("codes", parameter("dequantize", 2, 0.5), "zero point is from 0.5"),
    ("codes", four_bits, "4 bits hold -8 to 7"),
    ("codes", wrong_groups, r"parameters of shape \[2, 1, 1, 1\] in groups of 0"),
    ("titles", no_title, "add.*has no title"),
    ("titles", same_title, "2 layers have this title"),
]


@pytest.mark.parametrize(("name", "change", "said"), BREAKS, ids=[f"{n}-{c.__name__}" for n, c, _ in BREAKS])
def test_a_broken_invariant_is_named(network, name, change, said):
    verify(network)
    change(network)
    with pytest.raises(RewriteError, match=rf"(?s)^after x, .*{said}.*Invariant '{name}'"):
        verify(network, "x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_names": ("x", "y")}, "the graph: 1 placeholders, 2 names, 1 examples"),
        ({"example": (torch.zeros(2, 4, 8, 8),)}, r"has torch.float32 \[.*3, 8, 8\], the example torch.float32 \[2, 4"),
        ({"example": (torch.zeros(2, 3, 8, 8).int(),)}, "the example torch.int32"),
    ],
)
def test_inputs_belong_to_the_graph(network, changes, said):
    with pytest.raises(RewriteError, match=rf"{said}.*Invariant 'inputs'"):
        verify(replace(network, **changes))


def test_every_invariant_is_broken_here():
    assert {i.name for i in INVARIANTS} == {name for name, *_ in BREAKS} | {"inputs"}


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(4, 6, 1)], ids=str
)
def test_layers_with_groups_fit(layer):
    network = capture(layer.eval(), (torch.zeros(2, 4, *[5] * (layer.weight.ndim - 2)),)).edit()
    verify(network)
    bias = network.operators()[0].args[2]
    bias.meta.pop("val")
    set_tensor(network, bias.target, torch.zeros(4))
    with pytest.raises(RewriteError, match="bias has the shape"):
        verify(network)


def test_a_rewrite_is_named():
    network = capture(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))

    def forgets(network):
        made = network.edit()
        no_value_of = made.operators()[0]
        no_value_of.meta.pop("val")
        return made

    with pytest.raises(RewriteError, match=r"^after forgets, linear: linear has no meta"):
        rewritten(network, forgets)


def test_what_capture_makes_is_verified(monkeypatch):
    monkeypatch.setattr(capturing, "_add_titles", lambda network: network)
    with pytest.raises(CaptureError, match="Invariant 'titles'"):
        capture(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))


def test_titles_are_unique_where_a_module_is_called_like_a_numbered_one():
    layers = {name: nn.Linear(2, 2) for name in ("a", "a_2", "a_3")}
    model = Lambda(lambda m, x: m.a_3(m.a(m.a_2(m.a(m.a(x).relu().relu())))), **layers)
    network = capture(model.eval(), (torch.zeros(1, 2),))
    assert [title(n) for n in network.operators()] == ["a", "relu", "relu_2", "a_4", "a_2", "a_5", "a_3"]
    assert free_title(network, "relu") == "relu_3"
    assert free_title(network, "b") == "b"


SAVED = sorted(p for p in (Path(__file__).parents[1] / "data").glob("*/networks/*") if (p / FILES[0]).is_file())


@pytest.mark.parametrize("folder", SAVED, ids=lambda p: p.name)
def test_networks_that_earlier_versions_saved_keep_the_invariants(folder):
    verify(read(folder))


def test_a_saved_network_keeps_the_invariants(network, tmp_path):
    write(network, tmp_path)
    again = verify(read(tmp_path)).edit()
    four_bits(again)
    with pytest.raises(RewriteError, match="Invariant 'codes'"):
        verify(again)


INT8 = QuantSpec("int8")


def site(name="fc", node="linear", kind="activation", **changes):
    plain = {"name": name, "node": node, "kind": kind, "spec": INT8, "asked": Quantization(), "group": node}
    return Site(**{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "wieght"}, f"fc has the unknown kind 'wieght'; kinds are {', '.join(KINDS)}"),
        ({"spec": "int8"}, "fc has the spec 'int8', which is not a QuantSpec"),
        ({"name": ""}, "'linear' has no name"),
        ({"group": ""}, "'fc' has no group"),
    ],
)
def test_a_site_refuses_what_it_cannot_mean(changes, said):
    with pytest.raises(RecipeError, match=said):
        site(**changes)


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ([site(), site(node="other")], "2 sites of kind activation have the name fc"),
        ([site(), site("other")], "2 sites of kind activation have the node linear"),
        ([site(source=False)], "fc: no site of its group linear measures"),
    ],
)
def test_a_plan_refuses_sites_that_contradict_each_other(sites, said):
    with pytest.raises(RecipeError, match=said):
        Plan(tuple(sites), ())
    Plan((site(), site(kind="weight")), ())


def test_a_plan_has_one_line_for_an_operator():
    layer = PlannedLayer("fc", "linear", "linear", "int8", "why")
    with pytest.raises(RecipeError, match="operator linear is planned 2 times"):
        Plan((), (layer, layer))
    with pytest.raises(RecipeError, match="runtime_group is -1"):
        Plan((), (), -1)


def test_a_residual_of_one_layer_is_scaled_on_both_sides():
    layers = {"a": nn.Linear(3, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 2)}
    model = Lambda(lambda m, x: m.c((y := m.a(x).relu()) + m.b(y)), **layers)
    (space,) = spaces(capture(small(model).eval(), (torch.zeros(1, 3),)))
    assert [title(n) for n in space.producers] == ["0.a", "0.b"]
    assert [title(n) for n in space.consumers] == ["0.b", "0.c"]
