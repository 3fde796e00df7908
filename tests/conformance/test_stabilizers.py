"""Every entry of STABILIZERS keeps the same promises."""

import copy
from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
import torch

from tersor.errors import RecipeError
from tersor.tables import made
from tersor.training.schedules.progressive import Progressive
from tersor.training.stabilizers import STABILIZERS, Stabilizer, StabilizerEntry
from tersor.training.stabilizers.none import Nothing
from tersor.training.student import quantizers_in
from tests.training.students import QuantSpec, Toy, drawn

# Options with which each acts within a few steps.
OPTIONS = {"none": {}, "dampen": {"strength": 1.0}, "freeze": {"first": 0.4, "last": 0.1, "rate": 0.5}}
STEPS = 24


@pytest.fixture(params=sorted(STABILIZERS))
def entry(request):
    return made(STABILIZERS, {request.param: OPTIONS[request.param]}, "stabilizer")


class Run:
    """A training at a rate at which weights oscillate."""

    def __init__(self, entry, student=None):
        self.student = student or Toy(weights=QuantSpec("int4", "channel"))
        self.stabilizer = entry(self.student)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.2, momentum=0.9)

    def steps(self, numbers):
        for k in numbers:
            self.optimizer.zero_grad()
            loss = (self.student(drawn(16, 6, seed=k % 8)) - drawn(16, 6, seed=k % 8 + 50)).square().mean()
            (loss + self.stabilizer.loss(k / STEPS)).backward()
            self.optimizer.step()
            self.stabilizer.step(k / STEPS)
        return self

    def tensors(self):
        return {**self.student.state_dict(), **{f"state {k}": v for k, v in self.stabilizer.state_dict().items()}}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_it_is_a_frozen_dataclass_with_options_of_a_table(entry):
    assert is_dataclass(entry)
    assert isinstance(entry, StabilizerEntry)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        entry.bits = 1
    (name,) = [name for name, kind in STABILIZERS.items() if isinstance(entry, kind)]
    options = {f.name: getattr(entry, f.name) for f in fields(entry)}
    assert made(STABILIZERS, {name: options}, "stabilizer") == entry
    assert isinstance(entry(Toy()), Stabilizer)


def test_it_changes_the_course_of_training_if_it_is_not_none(entry):
    plain, run = (Run(one).steps(range(STEPS)) for one in (Nothing(), entry))
    same = all(torch.equal(a, b) for a, b in zip(plain.student.parameters(), run.student.parameters(), strict=True))
    assert same == isinstance(entry, Nothing)
    assert all(parameter.isfinite().all() for parameter in run.student.parameters())


def test_a_resumed_training_is_bit_identical(entry):
    whole, half = Run(entry).steps(range(STEPS)), Run(entry).steps(range(STEPS // 2))
    saved = copy.deepcopy((half.student.state_dict(), half.optimizer.state_dict(), half.stabilizer.state_dict()))
    half.steps(range(STEPS // 2, STEPS))
    resumed = Run(entry)
    parts = (resumed.student, resumed.optimizer, resumed.stabilizer)
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    resumed.steps(range(STEPS // 2, STEPS))
    assert_equal(whole.tensors(), resumed.tensors())
    assert_equal(whole.tensors(), half.tensors())


def test_two_ranks_with_the_same_weights_stay_equal(entry):
    """It depends on the weights alone: not on the batch, nor on random numbers."""
    one, other = Run(entry), Run(entry)
    other.steps([])
    for k in range(20):
        torch.manual_seed(k)
        torch.rand(3)
        one.steps([k])
        for name, parameter in one.student.named_parameters():
            own = dict(other.student.named_parameters())[name]
            gradient = own.grad = None if parameter.grad is None else parameter.grad.clone()
            assert gradient is not None
        other.optimizer.step()
        other.stabilizer.step(k / STEPS)
    assert_equal(one.tensors(), other.tensors())


def test_state_is_tensors_that_safetensors_can_hold(entry):
    state = Run(entry).steps(range(4)).stabilizer.state_dict()
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in state.values())
    storages = {value.data_ptr() for value in state.values()}
    assert len(storages) == len(state)


def test_what_a_schedule_holds_back_is_left_alone(entry):
    run, plain = Run(entry), Run(Nothing())
    for one in (run, plain):
        Progressive((8,), (0.5,))(one.student, 0.1)
        one.steps(range(10))
    assert_equal(dict(run.student.state_dict()), dict(plain.student.state_dict()))


def test_quantizers_get_no_gradient_of_it(entry):
    loss = entry(student := Toy()).loss(0.8)
    if isinstance(loss, torch.Tensor):
        loss.backward()
    assert all(p.grad is None for q in quantizers_in(student) for p in q.parameters())


def test_a_student_without_such_weights_is_refused(entry):
    for student in (
        Toy(weights=QuantSpec("int8")),
        Toy(weights=QuantSpec("binary", "channel")),
        Toy(weights=QuantSpec("ternary", "channel"), asked=("auto", "twn")),
    ):
        if isinstance(entry, Nothing):
            assert entry(student).state_dict() == {}
            continue
        with pytest.raises(RecipeError, match=r"at most 4 bits, and no layer has such .*`oscillation: none`"):
            entry(student)
