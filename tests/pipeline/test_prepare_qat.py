"""`prepare_qat` is `trainable` without a Task, and `convert` compresses what was trained."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from training.tiny_tasks import pairs, tiny_net, tiny_task

import tersor
from tersor.errors import CalibrationError, CaptureError, EngineError, RecipeError, TaskError

EXAMPLE = (torch.zeros(2, 3, 6, 6),)
DATA = pairs()
BATCHES = [(x,) for x, _ in DATA]


def prepared(net=None, recipe="int8-qat", calibration=BATCHES, **options):
    options = {"engine": "torch", "progress": False, **options}
    return tersor.prepare_qat(net or tiny_net(), recipe, EXAMPLE, calibration, **options)


def trained(student):
    """After two steps of SGD, seeded by nothing that is random."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    for x, y in DATA[:2]:
        optimizer.zero_grad()
        F.cross_entropy(student(x), y).backward()
        optimizer.step()
    return student


def equal(a, b):
    """Every code, scale and bias."""
    first, second = dict(a.network.tensors()), dict(b.network.tensors())
    return first.keys() == second.keys() and all(torch.equal(x, second[name]) for name, x in first.items())


def test_trained_and_converted_it_is_trainable_and_compress():
    ours = trained(prepared())
    theirs = trained(tersor.trainable(tiny_task(), "int8-qat", "torch", progress=False))
    done = tersor.convert(ours, progress=False)
    assert equal(done, tersor.compress(theirs, report=False, progress=False))
    assert (done.engine, done.recipe.name, done.report) == ("torch", "int8-qat", None)
    assert not equal(done, tersor.convert(prepared(), progress=False)), "training changed nothing"


def test_what_is_deployed_is_what_was_trained():
    student = trained(prepared(recipe="int4-qat"))
    x = DATA[2][0]
    assert torch.equal(tersor.convert(student, progress=False)(x), student.eval()(x).detach())


def test_the_student_trains_and_stays_as_it_is_when_it_is_converted():
    student = prepared()
    assert student.training
    trained(student)
    state = copy.deepcopy(student.state_dict())
    first = tersor.convert(student, progress=False)
    assert student.training
    assert all(torch.equal(x, state[name]) for name, x in student.state_dict().items())
    assert not equal(first, tersor.convert(trained(student), progress=False)), "more training made no difference"


def test_the_model_is_not_changed():
    net = tiny_net()
    before = copy.deepcopy(net.state_dict())
    trained(prepared(net))
    assert not any(m.training for m in net.modules())
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_batches_come_from_a_list_of_tensors_or_a_function():
    tensors, function = [x for x, _ in DATA], lambda: ((x,) for x, _ in DATA)
    states = [prepared(calibration=given).state_dict() for given in (BATCHES, tensors, function)]
    for other in states[1:]:
        assert all(torch.equal(x, other[name]) for name, x in states[0].items())


@pytest.mark.slow
def test_a_report_when_it_is_asked_for(quick_report):
    done = tersor.convert(trained(prepared()), report=True, progress=False)
    assert done.report is not None
    assert done.report.compressed.metric is None


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"net": tiny_net().train()}, CaptureError, "training mode"),
        ({"calibration": ()}, CalibrationError, "yielded no batch"),
        ({"calibration": DATA}, CalibrationError, "batch 0 has 2 arguments"),
        ({"recipe": "int9-qat"}, RecipeError, "did you mean"),
        ({"recipe": "int8-static", "target": "x"}, EngineError, "target"),
    ],
)
def test_what_is_wrong_is_said_before_training(changes, error, said):
    with pytest.raises(error, match=said):
        prepared(**changes)


@pytest.mark.parametrize("call", [tersor.convert, tersor.compress])
def test_what_wraps_a_student_is_refused_with_the_way_to_it(call):
    student = prepared()
    own = "got the wrapper AveragedModel, which holds a student: give the student itself, its `mod"
    with pytest.raises(TaskError, match=own):
        call(AveragedModel(student))
    with pytest.raises(TaskError, match=r"got the wrapper OptimizedModule, which holds a student.*its `_orig_mod`"):
        call(torch.compile(student, backend="eager"))
    with pytest.raises(TaskError, match=r"returned, got Sequential|got a Sequential, the model alone"):
        call(nn.Sequential())
