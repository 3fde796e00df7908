"""A task says what is wrong with it before any work is done."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tersor import Task
from tersor.errors import CalibrationError, TaskError

X = torch.zeros(1, 3, 4, 4)


def _task(calibration=lambda: [(torch.ones(2, 3, 4, 4),)], example=(X,), **changes):
    return Task("t", changes.pop("model", nn.Identity()), example, calibration, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": torch.relu}, "Module"),
        ({"example": X}, r"example=\(x,\)"),
        ({"example": ()}, "non-empty"),
        ({"calibration": [(X,)]}, "lambda: loader"),
        ({"calibration": iter([(X,)])}, "generator"),
        ({"evaluate": 0.9}, "function"),
        ({"calibration": DataLoader([1])}, "got DataLoader; a list or DataLoader is passed as `lambda: loader`"),
        ({"model": nn.Identity}, "got the class Identity: give an instance"),
        ({"model": nn.Linear(1, 1).state_dict()}, r"looks like a state_dict: load it .*load_state_dict"),
        ({"example": (X.numpy(),)}, r"torch.from_numpy\(x\)"),
    ],
)
def test_a_field_that_cannot_be_used(changes, said):
    with pytest.raises(TaskError, match=said):
        _task(**changes)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((torch.ones(2, 3, 4, 4), torch.ones(2)), r"2 arguments, the example has 1.*without labels.*\(\(x,\) for"),
        (("a",), "expected a tensor or an array, got str"),
        ((np.ones((2, 3, 4, 4), np.uint8),), "dtype torch.uint8, the example has torch.float32"),
        ((np.full((2, 3, 4, 4), "x"),), "an array of <U1, which PyTorch has not; convert it"),
        ((torch.ones(2, 3, 4, 4).half(),), "dtype torch.float16, the example has torch.float32"),
        ((torch.ones(3, 4, 4),), r"3 dimensions.*the first one is the batch: give x.unsqueeze\(0\)"),
        ((torch.ones(1, 2, 3, 4, 4),), "5 dimensions.*the form that the model takes"),
        ((torch.ones(2, 1, 4, 4),), "1 channels"),
        ((torch.full((2, 3, 4, 4), float("inf")),), "96 values are NaN or infinite"),
    ],
)
def test_a_batch_that_does_not_fit_is_numbered(batch, said):
    good = (torch.ones(2, 3, 4, 4),)
    with pytest.raises(CalibrationError, match=rf"calibration batch 1.*{said}"):
        list(_task(lambda: [good, batch]).calibration_batches())


@pytest.mark.parametrize("batch", [{"x": X}, 3])
def test_a_batch_of_another_form(batch):
    with pytest.raises(TaskError, match=r"positional|tuple"):
        list(_task(lambda: [batch]).calibration_batches())


def test_a_generator_read_twice_says_so():
    generator = iter([(torch.ones(2, 3, 4, 4),)])
    task = _task(lambda: generator)
    assert task.samples() == 2
    with pytest.raises(CalibrationError, match=r"read before.*fresh iterable"):
        task.samples()


def test_keywords_come_in_the_order_of_the_example():
    a, b = torch.ones(2, 1), torch.zeros(2, 1)
    task = _task(lambda: [{"b": b, "a": a, "label": 3}], {"a": a[:1], "b": b[:1]})
    (batch,) = task.calibration_batches()
    assert batch[0] is a
    assert batch[1] is b
    with pytest.raises(TaskError, match=r"lacks.*\['b'\]"):
        list(_task(lambda: [{"a": a}], {"a": a, "b": b}).calibration_batches())
    with pytest.raises(TaskError, match="keyword"):
        list(_task(lambda: [(a, b)], {"a": a, "b": b}).calibration_batches())


def test_nested_tensors_are_flattened_and_constants_must_stay():
    a, b = torch.ones(2, 1), torch.zeros(2, 1)
    (batch,) = _task(lambda: [([a, b], 2.0, None)], ([a[:1], b[:1]], 2.0, None)).calibration_batches()
    assert [x is y for x, y in zip(batch, (a, b), strict=True)] == [True, True]
    with pytest.raises(CalibrationError, match=r"3\.0, the example has 2\.0.*constant"):
        list(_task(lambda: [(a, 3.0)], (a, 2.0)).calibration_batches())


def test_one_tensor_is_a_batch_and_data_is_streamed():
    seen = []

    def batches():
        for k in range(3):
            seen.append(k)
            yield torch.full((2, 3, 4, 4), float(k))

    stream = _task(batches).calibration_batches()
    assert float(next(stream)[0].max()) == 0
    assert seen == [0]
    assert sum(1 for _ in stream) == 2


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ">f4"])
def test_arrays_are_taken_as_tensors_of_the_examples_dtype(kind):
    array = np.arange(96).reshape(2, 3, 4, 4).astype(kind)
    array.flags.writeable = False
    for batch in (array, (array,), [array[:, :, ::-1]]):
        (found,) = next(_task(lambda batch=batch: [batch]).calibration_batches())
        assert found.dtype == torch.float32
        assert torch.equal(found.flip(2) if isinstance(batch, list) else found, torch.arange(96.0).view(2, 3, 4, 4))


def test_integers_of_arrays_are_taken_where_they_fit():
    ids = torch.zeros(1, 2, dtype=torch.int32)
    task = _task(lambda: [{"ids": np.array([[1, 2]])}], {"ids": ids})
    assert next(task.calibration_batches())[0].dtype == torch.int32
    with pytest.raises(CalibrationError, match="int64, the example has"):
        list(_task(lambda: [(np.array([[1, 1 << 40]]),)], (ids,)).calibration_batches())


def test_the_mask_by_its_former_name():
    def mask(x):
        return x[:, 0, 0] == 0

    new, former = _task(token_mask=mask), _task(counted=mask)
    assert new.token_mask is new.counted is former.token_mask is former.counted is mask
    assert _task().token_mask is _task().counted is None
    assert "token_mask" in inspect.signature(Task).parameters
    for given in (mask, None):
        with pytest.raises(TaskError, match="Task got `token_mask` and `counted`, its former name; give `token_mask`"):
            _task(token_mask=given, counted=given)


def test_a_replaced_task_keeps_or_changes_its_mask():
    def mask(x):
        return x[:, 0, 0] == 0

    def other(x):
        return x[:, 0, 0] > 0

    task = _task(counted=mask)
    assert dataclasses.replace(task, name="u").token_mask is mask
    assert dataclasses.replace(task, token_mask=other).counted is other
