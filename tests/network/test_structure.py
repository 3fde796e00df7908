"""Forms of nested values: what is taken apart is put together again, in memory and from JSON."""

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import CaptureError, TaskError
from tersor.network.signature import Signature
from tersor.network.structure import Record, Structure

Pair = namedtuple("Pair", "left right")


@dataclass
class Found:
    boxes: torch.Tensor
    rest: dict | None = None


constants = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3)
values = st.recursive(
    constants | st.integers(0, 9).map(lambda k: torch.full((1,), float(k))),
    lambda inner: st.lists(inner, max_size=3)
    | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=2) | st.integers(0, 3), inner, max_size=3)
    | st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(values)
def test_what_is_taken_apart_is_put_together_again(value):
    structure, tensors = Structure.of(value, once=False)
    assert same(value, structure.build(tensors))
    assert len(set(structure.names())) == structure.count == len(tensors)
    form = structure.to_json()
    assert form is not None
    again = Structure.from_json(json.loads(json.dumps(form)))
    assert again.leaves() == structure.leaves()
    assert str(again.build(tensors)).replace("'", "") == str(structure.build(tensors)).replace("'", "")


def test_classes_come_back_and_from_a_file_a_record():
    x, y = torch.zeros(1), torch.ones(1)
    structure, tensors = Structure.of(Found(x, {"more": Pair(y, None)}))
    assert structure.names() == ("boxes", "rest_more_left")
    back = structure.build(tensors)
    assert type(back) is Found
    assert type(back.rest["more"]) is Pair
    record = Structure.from_json(structure.to_json()).build(tensors)
    assert isinstance(record, Record)
    assert record.boxes is record["boxes"] is record[0] is x
    assert record.rest["more"].left is record.rest["more"][0] is y
    assert record.rest["more"].right is None
    with pytest.raises(AttributeError, match="Found has no field 'scores'"):
        record.scores  # noqa: B018


def test_a_tensor_that_occurs_twice_is_listed_once():
    x = torch.zeros(1)
    structure, tensors = Structure.of([x, {"again": x}])
    assert len(tensors) == 1
    assert structure.names("out") == ("out_0",)
    assert structure.build(["y"]) == ["y", {"again": "y"}]
    assert Structure.of([x, x], once=False)[0].numbered([0, 0]).build(["y"]) == ["y", "y"]


@pytest.mark.parametrize("value", [object(), {"a": [object()]}, ..., {1, 2}])
def test_what_holds_no_tensors_is_refused_with_its_place(value):
    with pytest.raises(CaptureError, match="the value"):
        Structure.of(value)


NESTED = ({"list": [[0, {"x": 1}]]}, {"dict": [["a", {}]]})
DAMAGED = ({}, {"set": []}, {"tensor": 1}, {"tensor": "0"}, *NESTED)


@pytest.mark.parametrize("form", DAMAGED, ids=str)
def test_damaged_forms_are_refused(form):
    with pytest.raises(ValueError, match=r"no form|not numbered"):
        Structure.from_json(form)


def test_constants_that_json_lacks_are_kept_in_memory_alone():
    assert Structure.of((torch.float16, torch.zeros(1)))[0].to_json() is None
    assert Structure.of({(1, 2): torch.zeros(1)})[0].to_json() is None
    assert Structure.of(OrderedDict(a=torch.zeros(1)))[0].to_json() is not None


X, Y = torch.zeros(1), torch.ones(1)


@pytest.fixture
def signature():
    arguments, _ = Structure.of((X, [Y, 2.0], {"k": None}), once=False)
    return Signature(("x", "rest", "options"), arguments, Structure.of(X)[0])


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, Y), {}),
        ((X, [Y, 2.0], {"k": None}), {}),
        ((X, (Y, 2.0)), {}),
        ((X,), {"rest": [Y, 2.0]}),
        ((), {"rest": [Y, 2.0], "x": X}),
        ((), {"options": {"k": None}, "rest": [Y.numpy(), np.float64(2.0)], "x": X.numpy()}),
    ],
)
def test_calls_by_position_and_by_name(signature, args, kwargs):
    found = signature.flat(args, kwargs)
    assert [t.item() for t in found] == [0, 1]
    again = Signature.from_json(json.loads(json.dumps(signature.to_json())))
    assert [t.item() for t in again.flat(args, kwargs)] == [0, 1]


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "the argument x is missing"),
        ((X,), {}, "the argument rest is missing"),
        ((X, [Y, 2.0], {"k": None}, X), {}, "4 arguments were given"),
        ((X,), {"rest": [Y, 2.0], "z": X}, "z is not one of the example's"),
        ((X, [Y, 2.0]), {"x": X}, "x was given twice"),
        ((X, [Y, 3.0]), {}, "rest is 3.0, but"),
        ((X, [Y]), {}, "rest has another form"),
        (((X, Y),), {}, r"has another form .*a whole batch is passed as predict\(\*batch\)"),
        ((X, [2.0, Y]), {}, "rest must be a tensor"),
        ((X, [Y, Y]), {}, "rest must be the constant 2.0"),
        ((X, object()), {}, "rest has another form"),
    ],
)
def test_calls_of_another_form_are_refused(signature, args, kwargs, said):
    with pytest.raises(TaskError, match=said):
        signature.flat(args, kwargs)
