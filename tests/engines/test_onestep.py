"""The one-step check: engines that compute what was planned pass; each way of computing something else is named."""

from dataclasses import dataclass

import pytest
import torch
from parts import Lambda, draw, task_of
from torch import nn
from toy_engine import Residual, Toy, residual
from zoo import NETWORKS

import tersor
from tersor.engines import ENGINES, onestep
from tersor.engines.base import Executed
from tersor.engines.onestep import check_steps
from tersor.engines.torch.runner import TorchRunner
from tersor.errors import EngineError
from tersor.measure.headline import diagnose
from tersor.network.network import Network, bias_node, finish, op_name, set_tensor

RUNNING = [name for name in ("openvino", "onnxruntime", "torch") if ENGINES[name].version() is not None]


@dataclass(frozen=True)
class Other(Toy):
    """A toy that compiles another network than it is given."""

    change: object = None

    def compile(self, network, *, threads=None, precision="f32"):
        return TorchRunner(self.change(network.edit()), threads, precision)


def _steps(change, tolerance: float = 1.0):
    network, inputs = residual()
    engine = Other(change=change, tolerance=tolerance)
    return {s.name: s for s in check_steps(engine, network, engine.compile(network), inputs)}


def test_what_is_computed_as_planned_differs_by_nothing():
    steps = _steps(lambda network: network, tolerance=0.0)
    assert {s.verdict for s in steps.values()} == {"planned"}
    assert {s.largest for s in steps.values()} == {0.0}
    assert {"a", "b", "c"} <= {name for s in steps.values() for name in (s.name, *s.ops)} | set(steps)


def test_an_engine_that_leaves_the_quantizers_out_computes_in_float():
    def without(network: Network) -> Network:
        for node in network.operators():
            if op_name(node) == "fake_quantize":
                node.replace_all_uses_with(node.args[0])
        return finish(network)

    wrong = {n: s.verdict for n, s in _steps(without).items() if s.verdict != "planned"}
    assert set(wrong.values()) <= {"float", "unchecked"}
    assert "float" in wrong.values()


@pytest.mark.parametrize("weight", ["a", "b", "c"])
def test_another_weight_is_found_at_its_operator_alone(weight):
    def altered(network: Network) -> Network:
        name = f"{weight}.weight_codes"
        set_tensor(network, name, -network.tensor(name))
        return finish(network)

    steps = _steps(altered)
    wrong = [s for s in steps.values() if s.verdict != "planned"]
    assert [s.verdict for s in wrong] == ["other"], "what is behind it is computed from its own inputs"
    layer = {"a": "conv2d", "b": "conv2d", "c": "linear"}[weight]
    assert layer in wrong[0].ops
    assert wrong[0].largest > 1
    assert 0 < wrong[0].beyond <= 1


def test_the_tolerance_is_the_engines():
    def shifted(network: Network) -> Network:
        node = next(n for n in network.operators() if op_name(n) == "fake_quantize" and n.args[0].op != "placeholder")
        with network.graph.inserting_after(node):
            more = network.graph.call_function(torch.ops.aten.add.Tensor, (node, float(network.tensor(node.args[1]))))
        node.replace_all_uses_with(more, delete_user_cb=lambda user: user is not more)
        return finish(network)

    assert {s.verdict for s in _steps(shifted, tolerance=1.0).values()} == {"planned"}
    assert "other" in {s.verdict for s in _steps(shifted, tolerance=0.5).values()}


def test_a_rounding_that_is_left_out_inside_a_step_is_named():
    class Merged(TorchRunner):
        def executed(self):
            rows = super().executed()
            inside = {"conv2d_1", "add"}
            return [Executed("sum", "sum", "int8", tuple(inside)), *(r for r in rows if r.name not in inside)]

    @dataclass(frozen=True)
    class Fusing(Toy):
        def compile(self, network, *, threads=None, precision="f32"):
            edited = network.edit()
            add = next(n for n in edited.operators() if op_name(n) == "add")
            for source in add.all_input_nodes:
                if op_name(source) == "fake_quantize" and source.args[0].name == "conv2d_1":
                    add.replace_input_with(source, source.args[0])
            return Merged(finish(edited), threads, precision)

    network, inputs = residual()
    found = check_steps(Fusing(tolerance=0.0), network, Fusing().compile(network), inputs)
    wrong = [s for s in found if s.verdict != "planned"]
    assert [s.verdict for s in wrong] == ["other"]
    assert "does not round" in str(wrong[0].note)


def test_differences_of_several_operators_accuse_none():
    @dataclass(frozen=True)
    class Drifting(Toy):
        """Refuses more outputs, and computes a weight of its own at the beginning."""

        def compile(self, network, *, threads=None, precision="f32"):
            if len(network.output_names) > 1:
                raise EngineError("one output only")
            edited = network.edit()
            set_tensor(edited, "a.weight_codes", -edited.tensor("a.weight_codes"))
            return TorchRunner(finish(edited), threads, precision)

    network, inputs = residual()
    found = check_steps(Drifting(), network, Drifting().compile(network), inputs)
    assert {s.verdict for s in found} == {"unchecked"}
    assert found[-1].largest > 1
    assert "add up" in str(found[-1].note)


def test_an_engine_that_refuses_more_outputs_leaves_values_unchecked():
    @dataclass(frozen=True)
    class Refusing(Toy):
        def compile(self, network, *, threads=None, precision="f32"):
            if len(network.output_names) > 1:
                raise EngineError("one output only")
            return TorchRunner(network, threads, precision)

    network, inputs = residual()
    found = check_steps(Refusing(), network, Refusing().compile(network), inputs)
    assert {s.verdict for s in found[:-1]} == {"unchecked"}
    assert "one output only" in str(found[0].note)
    assert found[-1].verdict == "planned", "the output itself is known"


def test_a_nan_of_the_engine_is_no_agreement():
    def broken(network: Network) -> Network:
        bias = bias_node(next(n for n in network.operators() if op_name(n) == "linear"))
        set_tensor(network, bias.target, torch.full((5,), torch.nan))
        return finish(network)

    steps = _steps(broken)
    assert [s.verdict for s in steps.values()].count("other") == 1
    assert max(s.largest for s in steps.values()) == float("inf")


def turned(m, x):
    y = m.a(x).permute(0, 2, 3, 1) * m.gamma
    return m.c(y.permute(0, 3, 1, 2).relu().view(len(x), -1))


def masked(m, x):
    scores = m.a(x).flatten(2).transpose(1, 2)
    return (scores @ scores.transpose(1, 2) + m.mask).softmax(-1) @ scores


def single(m, x):
    return m.c(m.a(x).relu().flatten(1))


def time_first(m, x):
    y = m.a(x).flatten(2).permute(2, 0, 1)
    y = y + m.c(y).relu() + y.mean(0, keepdim=True)
    return m.d(y).permute(1, 0, 2)


def fixed(m, x):
    return torch.cat([m.c(m.a(sample[None]).relu().flatten(1)) for sample in x])


FORMS = {
    "a view of what lies otherwise": (turned, {"c": nn.Linear(8 * 16, 4)}),
    "masked by large numbers": (masked, {}),
    "one number": (single, {"c": nn.Linear(8 * 16, 1)}),
    "time before the batch": (time_first, {"c": nn.Linear(8, 8), "d": nn.Linear(8, 3)}),
    "a fixed batch": (fixed, {"c": nn.Linear(128, 3)}),
}


@pytest.mark.parametrize(
    ("form", "engine", "recipe"),
    [
        pytest.param(f, e, r, marks=[pytest.mark.slow] * ((f, e, r) != ("one number", "onnxruntime", "int8-dynamic")))
        for f in FORMS
        for e in RUNNING
        for r in ("int8-static", "int8-dynamic", "bf16")
    ],
)
def test_networks_of_any_form_are_checked_and_end_no_compression(form, engine, recipe):
    torch.manual_seed(0)
    forward, parts = FORMS[form]
    model = Lambda(forward, a=nn.Conv2d(3, 8, 3), **parts).eval()
    model.gamma = nn.Parameter(torch.rand(8))
    model.register_buffer("mask", torch.where(torch.rand(16, 16) > 0.6, -10_000.0, 0.0))
    size = 2 if form == "a fixed batch" else 6
    data = [(torch.randn(size, 3, 6, 6),) for _ in range(2)]
    task = tersor.Task("form", model, (torch.zeros(min(size, 2), 3, 6, 6),), lambda: data)
    done = tersor.compress(task, recipe, engine, report=False, progress=False)
    steps = ENGINES[engine].audit(done.network, done.runner, data[0]).steps
    assert steps
    # OpenVINO may read what a product with few outputs quantizes at run time in float: its numbers say so.
    taken = {"planned", "unchecked", *(["float"] if (engine, recipe) == ("openvino", "int8-dynamic") else [])}
    assert {s.verdict for s in steps} <= taken, [s for s in steps if s.verdict not in taken]


def test_a_wrong_score_beside_a_mask_is_found():
    scores = torch.tensor([[0.5, 1.0, -1e4, 2.0]])
    network, _ = residual()
    unit = onestep._unit(network, next(iter(network.graph.nodes)), scores)
    assert unit[0, 0] < 0.01
    assert unit[0, 2] > 10


def test_in_half_precision_nothing_is_compared_with_fp32():
    network, inputs = residual()
    runner = TorchRunner(network, precision="bf16")
    found = check_steps(Toy(), network, runner, inputs)
    assert {s.verdict for s in found} == {"unchecked"}
    assert all("bf16, as asked" in s.note for s in found)


@pytest.mark.slow
@pytest.mark.parametrize("engine", RUNNING)
def test_the_report_tells_it(engine):
    torch.manual_seed(0)
    done = tersor.compress(task_of(Residual().eval(), (3, 8, 8)), engine=engine, evaluate=False, progress=False)
    check = done.report.one_step
    assert check.tolerance == ENGINES[engine].tolerance
    assert {s.verdict for s in check.steps} == {"planned"}
    assert f"{len(check.steps)} of {len(check.steps)} values within" in tersor.report.text(done.report, width=400)
    bad = check.steps[0].model_copy(update={"verdict": "other", "largest": 7.0, "beyond": 0.5})
    report = done.report.model_copy(update={"one_step": replace_steps(check, bad)})
    assert f"{bad.name} differs by up to 7 codes" in tersor.report.text(report, width=400)
    assert ("other numbers than planned" in diagnose(report).first_line) == (engine != "torch")
    assert "7 codes" in tersor.report.html(report)


def replace_steps(check, first):
    return check.model_copy(update={"steps": (first, *check.steps[1:])})


@pytest.mark.slow
@pytest.mark.parametrize("engine", [e for e in RUNNING if e != "torch"])
@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-weight", "bf16", "int8-static"])
@pytest.mark.parametrize("name", ["vit", "unet", "attention", "efficientnet"])
def test_engines_compute_every_value_as_planned(name, recipe, engine):
    torch.manual_seed(0)
    model, shape = NETWORKS[name]()
    done = tersor.compress(task_of(model, shape), recipe, engine=engine, report=False, progress=False)
    steps = ENGINES[engine].audit(done.network, done.runner, draw((shape,), 5, 77)).steps
    # ONNX Runtime has one operator for a convolution and the addition behind it, unless the convolution is an output.
    fused = 2 if (name, engine) == ("efficientnet", "onnxruntime") else 0
    assert steps
    assert {s.verdict for s in steps} <= {"planned", "unchecked"}
    assert sum(s.verdict == "unchecked" for s in steps) <= fused
