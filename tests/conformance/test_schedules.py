"""Every entry of SCHEDULES keeps the same promises."""

import copy
from dataclasses import FrozenInstanceError, fields, is_dataclass
from itertools import pairwise

import pytest
import torch

from tersor.numerics import QuantSpec
from tersor.tables import made
from tersor.training.quantizers import QUANTIZERS
from tersor.training.schedules import SCHEDULES, Schedule
from tersor.training.schedules.all import All
from tersor.training.schedules.layers import Layers
from tersor.training.schedules.mixing import Mixing
from tersor.training.schedules.progressive import Progressive
from tersor.training.student import quantizers_in
from tests.training.students import INT2, UINT2, Toy, drawn

VARIANTS: dict[str, Schedule] = {
    **{name: entry() for name, entry in SCHEDULES.items()},
    "float first": Progressive((32, 8, 4), (0.2, 0.3, 0.4)),
    "from the output": Layers("output", "block"),
    "least sensitive first": Layers("sensitivity", end=1.0),
    "linear": Mixing(1.0, "linear"),
}
STEPS = 8
COURSE = [k / STEPS for k in range(STEPS + 1)]
SOME = [0.0, 0.3, 0.7]
# Of every training quantizer one that trains a weight, or else a value.
WEIGHTS = {"fixed": INT2, "lsq": INT2, "lsq+": QuantSpec("int2", symmetric=False), "dorefa": INT2} | {
    name: QuantSpec("binary" if name in ("sign", "irnet") else "ternary", "channel")
    for name in ("twn", "ttq", "sign", "irnet", "projected")
}  # fmt: skip


@pytest.fixture(params=sorted(VARIANTS))
def schedule(request):
    return VARIANTS[request.param]


def settings(student):
    return [(q.share, q.bits) for q in quantizers_in(student)]


def at(schedule, progress, student=None):
    student = student or Toy()
    schedule(student, progress)
    return student


@torch.no_grad()
def error(student, x):
    """The sum of all quantizers' relative errors, each on a value of its own."""
    weights = {id(w.quantizer): w.parameter for w in student.latent_weights()}
    total = 0.0
    for q in quantizers_in(student):
        value = weights.get(id(q), x)
        total += float((q(value) - value).square().sum() / value.square().sum())
    return total


def test_it_is_a_frozen_dataclass_with_options_of_a_table(schedule):
    assert is_dataclass(schedule)
    assert isinstance(schedule, Schedule)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        schedule.end = 0.1
    (name,) = [name for name, entry in SCHEDULES.items() if isinstance(schedule, entry)]
    options = {f.name: getattr(schedule, f.name) for f in fields(schedule)}
    assert made(SCHEDULES, {name: options}, "schedule") == schedule


def test_it_is_pure_in_progress(schedule):
    straight = [settings(at(schedule, progress)) for progress in COURSE]
    student = Toy()
    for k in (8, 0, 5, 5, 2, 7, 1, 3, 6, 4):
        assert settings(at(schedule, COURSE[k], student)) == straight[k]
        for quantizer in quantizers_in(student):
            quantizer.share, quantizer.bits = 0.3, 5


@pytest.mark.parametrize("progress", [1.0, 1.5])
def test_at_the_end_everything_is_as_it_is_deployed(schedule, progress):
    x, student, plain = drawn(5, 6), at(schedule, progress), at(All(), 0.0)
    assert torch.equal(student(x), plain(x))
    assert settings(student) == settings(plain)


def test_from_its_end_on_everything_is_as_deployed(schedule):
    plain = settings(at(All(), 0.0))
    assert settings(at(schedule, schedule.end)) == plain
    if not isinstance(schedule, All):
        assert settings(at(schedule, 0.5 * schedule.end)) != plain


@pytest.mark.parametrize("progress", SOME)
def test_eval_mode_codes_and_grids_are_as_deployed_at_any_time(schedule, progress):
    x, student, plain = drawn(5, 6), at(schedule, progress).eval(), Toy().eval()
    assert torch.equal(student(x), plain(x))
    for weight, own in zip(student.latent_weights(), plain.latent_weights(), strict=True):
        one, other = weight.quantizer.train().qtensor(weight.parameter), own.quantizer.qtensor(own.parameter)
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scale, other.scale)


def test_the_error_grows_with_progress(schedule):
    x = drawn(200, 6, seed=7).relu() * 2
    errors = [error(at(schedule, progress), x) for progress in COURSE]
    assert all(before <= after * 1.0001 + 1e-9 for before, after in pairwise(errors))
    if not isinstance(schedule, All):
        assert errors[0] < errors[-1] / 2


@pytest.mark.parametrize("progress", SOME)
def test_every_parameter_has_a_gradient_at_any_time(schedule, progress):
    """A parameter without one would stop DistributedDataParallel."""
    student = at(schedule, progress)
    student(drawn(5, 6)).square().sum().backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("asked", sorted(WEIGHTS))
def test_every_quantizer_of_weights_takes_it(schedule, asked):
    student = Toy(weights=WEIGHTS[asked], asked=("auto", asked))
    for progress in (*SOME, 1.0):
        assert at(schedule, progress, student)(drawn(5, 6)).isfinite().all()
    assert torch.equal(student(drawn(5, 6)), Toy(weights=WEIGHTS[asked], asked=("auto", asked))(drawn(5, 6)))


def test_every_quantizer_is_tried():
    assert set(WEIGHTS) | {"pact"} == set(QUANTIZERS)
    student = Toy(UINT2, asked=("pact", "auto"))
    for schedule in VARIANTS.values():
        for progress in SOME:
            assert at(schedule, progress, student)(drawn(5, 6)).isfinite().all()


def trained(schedule, steps, student=None, optimizer_state=None):
    """The student after these steps, with the optimizer."""
    student = student or Toy()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    if optimizer_state:
        optimizer.load_state_dict(optimizer_state)
    for k in steps:
        schedule(student, k / STEPS)
        optimizer.zero_grad()
        (student(drawn(16, 6, seed=k)) - drawn(16, 6, seed=k + 50)).square().mean().backward()
        optimizer.step()
    return student, optimizer


def test_a_resumed_training_is_bit_identical(schedule):
    whole, _ = trained(schedule, range(STEPS))
    half, optimizer = trained(schedule, range(STEPS // 2))
    fresh = Toy()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1)
    fresh.load_state_dict(half.state_dict())
    resumed, _ = trained(schedule, range(STEPS // 2, STEPS), fresh, copy.deepcopy(optimizer.state_dict()))
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
