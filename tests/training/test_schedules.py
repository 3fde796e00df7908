"""What each schedule does when, and what a quantizer makes of it."""

from itertools import combinations

import pytest
import torch

from tersor.errors import RecipeError
from tersor.numerics import QuantSpec
from tersor.recipe import Recipe
from tersor.training.quantizers.rounding import Round
from tersor.training.quantizers.scales import learned_scale
from tersor.training.schedules.layers import Layers, blocks, errors, layers
from tersor.training.schedules.mixing import Mixing
from tersor.training.schedules.progressive import Progressive
from tersor.training.student import quantizers_in
from tests.training.students import INT2, NAMES, UINT2, Toy, drawn, module_of

# Each channel, and each group, sees the same values.
VALUES = torch.linspace(-8, 8, 2001).repeat(2, 3)
FINE = {
    "int2": INT2, "uint2": UINT2, "int4": QuantSpec("int4"), "ternary": QuantSpec("ternary", "channel"),
    "int3 asymmetric": QuantSpec("int3", "channel", symmetric=False), "int2 grouped": QuantSpec("int2", "group:2001"),
}  # fmt: skip


@pytest.fixture(params=sorted(FINE))
def quantizer(request):
    """With a scale of its own for each channel or group, and values beyond the range."""
    made = module_of("w", FINE[request.param], drawn(*VALUES.shape), True)
    with torch.no_grad():
        made.log_scale.add_(0.1 * drawn(*made.log_scale.shape, seed=3) - 0.3)
    return made


@torch.no_grad()
def seen(quantizer, x, bits):
    quantizer.bits = bits
    return quantizer(x)


# --- finer grids ---


def test_a_finer_grid_holds_the_deployed_one_and_its_ends(quantizer):
    for bits in (2, 3, 4, 8):
        fine, deployed = (seen(quantizer, VALUES, b)[:, :2001] for b in (bits, None))
        for k in range(2):
            levels, own = fine[k].unique(), deployed[k].unique()
            assert len(own) <= len(levels) <= max(len(own), 2**bits)
            assert torch.allclose(levels[[0, -1]], own[[0, -1]])
            assert ((levels - own[:, None]).abs().amin(1) <= 1e-6).all()
            assert levels.abs().amin() == 0


def test_more_bits_have_a_smaller_error(quantizer):
    ends = (of(seen(quantizer, VALUES, None).reshape(2, 3, 2001), 2, True) for of in (torch.amin, torch.amax))
    inside = VALUES.reshape(2, 3, 2001).clamp(*ends).reshape(VALUES.shape).detach()
    found = [float((seen(quantizer, inside, bits) - inside).square().sum()) for bits in (8, 6, 5, 4, 3, 2)]
    assert found == sorted(found)
    assert found[0] < found[-1] / 100


def test_the_gradients_of_a_finer_grid_are_those_of_the_plain_composition(quantizer):
    x, weights = VALUES.clone().requires_grad_(), drawn(*VALUES.shape, seed=6)
    quantizer.bits = 6
    parts = quantizer.parts
    assert parts == 63 // (quantizer.spec.high - quantizer.spec.low)
    scale, zero = learned_scale(quantizer).detach().requires_grad_(), quantizer.zero_point
    quantizer.stored_grid = lambda *_: (scale, quantizer.zero_point)
    block = quantizer.spec.block
    whole, zero = (t.repeat_interleave(block, 1) if block else t for t in (scale, zero))
    low, high = (end - zero for end in (quantizer.spec.low, quantizer.spec.high))
    exact = torch.minimum(torch.maximum(x / whole, low.expand_as(x)), high.expand_as(x))
    plain = Round.apply(exact * parts) / parts * whole
    wanted_x, wanted_scale = torch.autograd.grad((plain * weights).sum(), (x, scale))

    value = quantizer(x)
    # Where a tie is rounded is chance.
    same = (value - plain).abs() < 1e-5
    assert same.float().mean() > 0.99
    for_x, for_scale = torch.autograd.grad((value * weights * same).sum(), (x, scale))
    assert torch.allclose(for_x, wanted_x * same, atol=1e-5)
    assert torch.allclose(for_scale, wanted_scale, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_a_share_mixes_the_value_and_its_quantized_form(quantizer):
    x = drawn(*VALUES.shape, seed=5)
    deployed, found = quantizer(x), []
    for share in (0.0, 0.25, 0.5, 1.0):
        quantizer.share = share
        assert torch.allclose(quantizer(x), x + share * (deployed - x), atol=1e-6)
        found.append(float((quantizer(x) - x).square().sum()))
    assert found == sorted(found)
    assert found[0] == 0
    assert torch.equal(quantizer(x), deployed)


# --- progressive ---


def bits_of(schedule, *, asked="auto", weights=INT2):
    """The share and bits of the first weight, at tenths of training."""
    student, found = Toy(weights=weights, asked=("auto", asked)), []
    for k in range(11):
        schedule(student, k / 10)
        quantizer = student.quantizers["stem_weight"]
        found.append((quantizer.share, quantizer.bits))
    return found


def test_stages_follow_their_shares():
    found = bits_of(Progressive((32, 8, 4), (0.2, 0.3, 0.1)))
    assert found == [(0, None)] * 2 + [(1, 8)] * 3 + [(1, 4)] + [(1, None)] * 5


def test_what_has_the_bits_of_a_stage_is_deployed_from_it_on():
    found = bits_of(Progressive((32, 8, 4), (0.2, 0.3, 0.1)), weights=QuantSpec("int8"))
    assert found == [(0, None)] * 2 + [(1, None)] * 9


@pytest.mark.parametrize(("asked", "format"), [("sign", "binary"), ("twn", "ternary"), ("dorefa", "int2")])
def test_what_has_no_finer_grid_passes_its_input_until_its_own_stage(asked, format):
    found = bits_of(Progressive((8, 4), (0.2, 0.3)), asked=asked, weights=QuantSpec(format, "channel"))
    assert found == [(0, None)] * 5 + [(1, None)] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (4, 8)}, r"\[4, 8\] do not fall"),
        ({"bits": (4, 4)}, "do not fall"),
        ({"bits": (24, 8)}, "2 to 16 bits, or 32 for float, not 24"),
        ({"shares": (0.5,)}, "2 stages have 1 shares"),
        ({"shares": (0.5, 0.5)}, "leave nothing for the last stage"),
    ],
)
def test_stages_that_make_no_sense_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Progressive(**options)


# --- layers ---


def reached(schedule, progress, student):
    schedule(student, progress)
    return [q.name for q in quantizers_in(student) if q.share == 1]


def courses(schedule, student):
    """The layers in the order in which they are reached, and after how many of 1024 steps."""
    found: dict[str, int] = {}
    for k in range(1025):
        for name in reached(schedule, k / 1024, student):
            found.setdefault(name, k)
    return {name: k for name, k in found.items() if name in NAMES}


@pytest.mark.parametrize("order", ["input", "output"])
def test_layers_are_reached_one_after_the_other_at_equal_intervals(order):
    names = NAMES if order == "input" else NAMES[::-1]
    assert courses(Layers(order, end=0.5), Toy()) == dict(zip(names, (0, 128, 256, 384), strict=True))


def test_a_layer_is_reached_with_its_input():
    assert reached(Layers(end=0.8), 0.25, Toy()) == ["stem.relu", "stem", "blocks.0.up.relu", "blocks.0.up"]


def test_a_block_is_reached_at_once():
    found = courses(Layers(by="block", end=0.75), Toy())
    assert found == {"stem": 0, "blocks.0.up": 256, "blocks.0.down": 256, "head": 512}
    assert list(blocks(Toy())) == ["stem", "blocks.0", "head"]


def test_values_behind_the_last_weight_belong_to_it():
    student = Toy()
    student.quantizers["out"] = module_of("out", UINT2, drawn(4, 6).relu(), False)
    assert [q.name for q in layers(student)["head"]] == ["head.relu", "head", "out"]


def test_without_quantized_weights_each_value_is_one_for_itself():
    student = Toy()
    for name in [name for name in student.quantizers if name.endswith("weight")]:
        del student.quantizers[name]
    assert list(layers(student)) == [f"{name}.relu" for name in NAMES]
    assert reached(Layers(end=0.8), 0.0, student) == ["stem.relu"]


@torch.no_grad()
def brute_force(groups):
    """The relative errors of the quantizers, on the values that they started with."""
    found = {}
    for k, name in enumerate(NAMES):
        values = {False: drawn(64, 6, seed=20 + k).relu() * (k + 1), True: drawn(6, 6, seed=k) / 6**0.5}
        pairs = [(q.eval()(values[q.is_weight]), values[q.is_weight]) for q in groups[name]]
        found[name] = sum(float((y - x).square().sum() / x.square().sum()) for y, x in pairs)
    return found


def test_the_least_sensitive_layers_come_first():
    """After k layers, no other k layers have a smaller sum of errors."""
    student = Toy()
    wanted = brute_force(layers(student))
    assert errors(layers(student)) == pytest.approx(wanted, rel=1e-5)
    for k in range(1, 5):
        names = [n for n in reached(Layers("sensitivity", end=0.8), (k - 1) * 0.2 + 0.01, student) if n in NAMES]
        least = min(sum(wanted[name] for name in some) for some in combinations(NAMES, k))
        assert (len(names), sum(wanted[name] for name in names)) == (k, pytest.approx(least))
    found = courses(Layers("sensitivity"), student)
    assert sorted(found, key=found.__getitem__) != list(NAMES)


def test_the_order_stays_when_weights_and_scales_have_moved():
    student, fresh = Toy(), Toy()
    for quantizer in quantizers_in(fresh):
        quantizer.error.fill_(1)
    before = courses(Layers("sensitivity"), student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.rand_like(parameter))
    fresh.load_state_dict(student.state_dict())
    assert courses(Layers("sensitivity"), student) == courses(Layers("sensitivity"), fresh) == before


def test_given_sensitivities_order_the_layers():
    given = dict(zip(NAMES, (3.0, 0.5, 2.0, 1.0), strict=True))
    found = courses(Layers("sensitivity", sensitivities=given), Toy())
    assert sorted(found, key=found.__getitem__) == ["blocks.0.up", "head", "blocks.0.down", "stem"]


def test_sensitivities_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match=r"sensitivities of steam: no such layer \(did you mean 'stem'\?\)"):
        Layers("sensitivity", sensitivities={"steam": 1.0})(Toy(), 0.0)
    with pytest.raises(RecipeError, match=r"missing for blocks\.0\.up, blocks\.0\.down, head"):
        Layers("sensitivity", sensitivities={"stem": 1.0})(Toy(), 0.0)
    with pytest.raises(RecipeError, match=r"the order is from the input: `order: sensitivity`"):
        Layers(sensitivities={"stem": 1.0})
    student = Toy()
    student.quantizers["head_in"].error = None
    with pytest.raises(RecipeError, match=r"head\.relu: calibration measured no error"):
        Layers("sensitivity")(student, 0.0)


def test_a_cosine_lies_below_the_line_first_and_above_it_then():
    assert Mixing(0.8).share(0.2) < Mixing(0.8, "linear").share(0.2) == pytest.approx(0.25)
    assert Mixing(0.8).share(0.6) > Mixing(0.8, "linear").share(0.6)
    assert Mixing(0.8).share(0.4) == pytest.approx(0.5)


def test_a_recipe_names_schedule_and_stabilizer():
    text = """
    steps:
      - quantize: {weights: {format: int4}}
      - train:
          schedule: {progressive: {bits: [8, 6], shares: [0.2, 0.2]}}
          oscillation: {freeze: {last: 0.02}}
    """
    train = Recipe.from_yaml(text).steps[1]
    assert train.schedule == {"progressive": {"bits": (8, 6), "shares": (0.2, 0.2)}}
    assert train.oscillation == {"freeze": {"last": 0.02}}
    for wrong in ("bits: [4, 8]", "bits: [1]"):
        with pytest.raises(RecipeError, match=r"schedule"):
            Recipe.from_yaml(text.replace("bits: [8, 6]", wrong))
