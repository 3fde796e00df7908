"""What goes wrong on the way is an error that leads on, or a warning in the report."""

import pytest
import torch
from parts import Named, conv, head, task_of
from torch import nn

import tersor
from tersor.errors import CaptureError, TaskError

pytestmark = pytest.mark.usefixtures("quick_report")


def _model():
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 8), head(8))


def _task(**changes):
    from dataclasses import replace

    return replace(task_of(_model(), (3, 8, 8)), **changes)


def test_without_vnni_the_report_says_what_was_done(monkeypatch):
    monkeypatch.setattr("tersor.pipeline.graph.prepare.exact_int8", lambda isa: False)
    done = tersor.compress(_task(), engine="torch", progress=False)
    assert any("no VNNI" in w and "±63" in w for w in done.report.warnings)


def test_with_vnni_nothing_is_said(monkeypatch):
    monkeypatch.setattr("tersor.pipeline.graph.prepare.exact_int8", lambda isa: True)
    done = tersor.compress(_task(), engine="torch", progress=False)
    assert not any("VNNI" in w for w in done.report.warnings)
    assert max(int(t.abs().max()) for name, t in done.network.tensors() if name.endswith("_codes")) == 127


def _raises(predict):
    raise ZeroDivisionError("no labels")


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        (_raises, "evaluate of the original network raised ZeroDivisionError: no labels"),
        (lambda predict: torch.tensor([1.0, float("nan")]), "nan for sample 1"),
        (lambda predict: torch.zeros(3, 2), r"shape \[3, 2\]"),
        (lambda predict: predict(torch.zeros(2, 9, 8, 8)).mean(), "evaluate of the original network raised"),
    ],
)
def test_a_judge_that_fails_is_named(evaluate, said):
    with pytest.raises(TaskError, match=said):
        tersor.compress(_task(evaluate=evaluate), engine="torch", progress=False)


def test_no_judge_is_a_report_without_metric():
    done = tersor.compress(_task(evaluate=None), engine="torch", progress=False)
    assert done.report.compressed.metric is None
    assert any("compressed.metric: unknown, because the task has no evaluate" in w for w in done.report.warnings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_refused_at_once(dtype):
    model = _model().to(dtype).eval()
    task = tersor.Task("half", model, (torch.zeros(1, 3, 8, 8, dtype=dtype),), lambda: [])
    with pytest.raises(CaptureError, match=r"0\.0\.weight is torch\.\w+; .*model\.float\(\)"):
        tersor.compress(task, progress=False)


def test_the_callers_model_is_untouched():
    model = _model().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    task = task_of(model, (3, 8, 8))
    settled = {k: v.clone() for k, v in model.state_dict().items()}
    tersor.compress(task, engine="torch", report=False, progress=False)
    assert before.keys() == settled.keys()
    assert all(torch.equal(v, settled[k]) for k, v in model.state_dict().items())


def test_outputs_of_a_dict_come_in_its_order():
    torch.manual_seed(0)
    task = task_of(Named(), (3, 16, 16))
    done = tersor.compress(task, engine="torch", report=False, progress=False)
    assert done.network.output_names == ("scores", "boxes")
    scores, boxes = done(torch.zeros(3, 3, 16, 16))
    assert (scores.shape[1], boxes.shape[1]) == (2, 4)
