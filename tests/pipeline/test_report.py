"""What goes wrong on the way is an error that leads on, or a warning in the report."""

import numpy as np
import pytest
import torch
from parts import Named, conv, head, task_of
from torch import nn

import tersor
from tersor.engines.targets import here
from tersor.errors import CaptureError, EngineError, TaskError
from tersor.network.planned import PlannedLayer
from tersor.pipeline.graph.audit import Audited

pytestmark = pytest.mark.usefixtures("quick_report")


def _model():
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 8), head(8))


def _task(**changes):
    from dataclasses import replace

    return replace(task_of(_model(), (3, 8, 8)), **changes)


# A recipe is planned for a target, whatever the CPU is that plans.
@pytest.mark.parametrize(
    ("flags", "target", "most", "said"),
    [
        pytest.param(("avx2",), None, 63, "planned for x86-avx2, which has no VNNI", marks=pytest.mark.slow),
        pytest.param(("avx2", "avx512_vnni"), None, 127, None, marks=pytest.mark.slow),
        (("avx2",), "x86-vnni", 127, "planned for x86-vnni, measured on x86-avx2, which has no VNNI"),
        pytest.param(
            ("avx2", "amx_int8"), "x86-avx2", 63, "planned for x86-avx2, which has no VNNI", marks=pytest.mark.slow
        ),
        pytest.param((), None, 63, "planned for an unknown CPU, which has no VNNI", marks=pytest.mark.slow),
        pytest.param(
            ("asimd", "asimddp"), "arm-neon", 63, "planned for arm-neon, which has no VNNI", marks=pytest.mark.slow
        ),
    ],
)
def test_a_plan_is_made_for_a_target(cpu, flags, target, most, said):
    cpu(*flags)
    done = tersor.compress(_task(), engine="torch", target=target, progress=False)
    assert max(int(t.abs().max()) for name, t in done.network.tensors() if name.endswith("_codes")) == most
    told = [w for w in done.report.warnings if "VNNI" in w]
    assert ([said] if said else []) == [w[: len(said or "")] for w in told]
    assert all(("±63" in w) == (most == 63) for w in told)
    assert done.report.environment.target == (target or here().name)


def test_a_saved_network_names_its_target(cpu, tmp_path):
    cpu("avx2")
    done = tersor.compress(_task(), engine="torch", target="x86-vnni", report=False, progress=False)
    again = tersor.load(done.save(tmp_path / "saved")).compile("torch")
    assert [each.deployed.target for each in (done, again)] == ["x86-vnni"] * 2


def test_a_prepared_model_is_converted_for_its_target(cpu):
    cpu("avx2")
    prepared = tersor.prepare(_model().eval(), example=(torch.zeros(1, 3, 8, 8),), engine="torch", target="x86-vnni")
    prepared(torch.rand(8, 3, 8, 8))
    done = tersor.convert(prepared, progress=False)
    assert max(int(t.abs().max()) for name, t in done.network.tensors() if name.endswith("_codes")) == 127


@pytest.mark.parametrize(("engine", "known"), [("torch", "x86-avx2, x86-vnni"), ("tensorrt", "depend on none")])
def test_an_unknown_target_lists_those_of_the_engine(engine, known):
    with pytest.raises(EngineError, match=f"the engine '{engine}' knows no target 'x86-mmx'.*{known}"):
        tersor.compress(_task(), "int8-tensorrt", engine, target="x86-mmx", progress=False)


def _raises(predict):
    raise ZeroDivisionError("no labels")


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        (_raises, "evaluate of the original network raised ZeroDivisionError: no labels"),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                (lambda predict: torch.tensor([1.0, float("nan")]), "nan for sample 1"),
                (lambda predict: torch.zeros(3, 2), r"shape \[3, 2\]"),
                (lambda predict: predict(torch.zeros(2, 9, 8, 8)).mean(), "evaluate of the original network raised"),
            )
        ),
    ],
)
def test_a_judge_that_fails_is_named(evaluate, said):
    with pytest.raises(TaskError, match=said):
        tersor.compress(_task(evaluate=evaluate), engine="torch", progress=False)


@pytest.mark.slow
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
    found = done(torch.zeros(3, 3, 16, 16))
    assert list(found) == ["scores", "boxes"]
    assert (found["scores"].shape[1], found["boxes"].shape[1]) == (2, 4)


@pytest.mark.parametrize(
    ("planned", "executed", "weight", "note", "rule", "said"),
    [
        ("int8", "int8", "int8", None, None, "weight of conv2d"),
        ("int8", "fp32", "int8", None, None, "engine: no reason known"),
        ("int8", "fp32", "int8", "part of Subgraph s", None, "engine: no reason known; part of Subgraph s"),
        ("int8", "fp32", "int8", None, "Engine: no kernel", "Engine: no kernel"),
        ("fp32", "int8", "int8", None, None, "engine: no reason known"),
        ("fp32", "int8", None, "part of Convolution c", None, "part of Convolution c"),
        ("int8", "fused", "int8", "part of Convolution c", None, "part of Convolution c"),
    ],
)
def test_a_layer_that_did_not_run_as_planned_never_gives_the_plans_reason(planned, executed, weight, note, rule, said):
    layer = PlannedLayer("c", "c", "conv2d", planned, "weight of conv2d", weight)
    assert Audited(layer, executed, note, rule).explained("engine") == said


@pytest.mark.slow
def test_arrays_calibrate_and_an_evaluation_of_something_else_is_said(quick_report):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = np.random.default_rng(0).normal(size=(64, 8))
    x = torch.from_numpy(data).float()

    def scores(predict):
        predict(x)
        return model(x).detach()[:, 0]

    task = tersor.Task("ignoring", model, (x[:1],), lambda: [data[:32], (data[32:],)], evaluate=scores)
    found = tersor.compress(task, engine="torch", progress=False).report
    assert found.samples.calibration == 64
    assert any("gave random outputs of `predict` the very scores" in warning for warning in found.warnings)
    assert not any("no such ratio" in warning for warning in found.warnings)
