"""What users do with an nn.Module: copies, devices, compilers, averages, precision, memory."""

import copy
import io
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parts import conv, task_of
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tersor.errors import TaskError
from tersor.network.trainable.result import network_of
from tests.network.trainable.students import RECIPES, call, loss_of, recipe, same, step, student, task

ROOT = Path(__file__).parents[3]


def made(name: str = "residual", recipe: str = "int4"):
    return student(task(name), RECIPES[recipe]), task(name).calibration()


def test_saved_whole_and_loaded_it_goes_on_training_alike():
    view, batches = made()
    step(view, batches[:1])
    file = io.BytesIO()
    torch.save(view, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    for one in (view, other):
        step(one, batches[1:2])
    assert same(call(view, batches[0]), call(other, batches[0]))
    state = io.BytesIO()
    torch.save(view.state_dict(), state)
    state.seek(0)
    assert torch.load(state, weights_only=True).keys() == view.state_dict().keys()


def test_the_average_of_weights_and_log_scales_is_deployed():
    view, batches = made("chain")
    average = AveragedModel(view, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    names = [n for n, _ in view.named_parameters()]
    wanted = {n: p.detach().clone() for n, p in view.named_parameters()}
    for k in range(3):
        step(view, batches[k : k + 1])
        average.update_parameters(view)
        share = 0.0 if k == 0 else 0.5
        wanted = {n: share * wanted[n] + (1 - share) * view.get_parameter(n).detach() for n in names}
    for n in names:
        torch.testing.assert_close(average.module.get_parameter(n), wanted[n])
    assert any(n.endswith("log_scale") for n in names)
    found = average.module.eval()
    assert same(call(found, batches[0]), call(network_of(found), batches[0]))
    assert not same(call(found, batches[0]), call(network_of(view), batches[0]))


def test_bf16_autocast_trains_in_float32_parameters():
    view, batches = made()
    view.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(view, batches[0])
    loss.backward()
    for parameter in view.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
    torch.testing.assert_close(loss, loss_of(view, batches[0]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["constants", pytest.param("words", marks=pytest.mark.slow)])
def test_constants_are_made_where_the_module_is(name):
    """The meta device stands for a GPU: an operator of tensors on two devices is refused."""
    view, batches = made(name, "int8")
    view.to("meta")
    batch = tuple(t.to("meta") for t in batches[0])
    for training in (True, False):
        assert all(out.is_meta for out in call(view.train(training), batch))


COMPILED = """
import copy, sys, torch
from tests.network.trainable.students import RECIPES, loss_of, student, task
from torch._dynamo.utils import counters

for depth in (0, 1):
    view, batch = student(task("chain"), RECIPES["int4"]), task("chain").calibration()[0]
    other = copy.deepcopy(view).checkpoint(depth)
    compiled = torch.compile(other, backend=sys.argv[1])
    for training in (True, False):
        losses = [loss_of(view.train(training), batch), loss_of(compiled.train(training), batch)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        for loss in losses:
            loss.backward()
    for a, b in zip(view.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-3, atol=2e-3)
    assert not counters["graph_break"], counters["graph_break"]
    torch._dynamo.reset()
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_computes_the_same_in_one_graph(backend):
    # The checks of types at run time, which the tests install, cannot be compiled.
    paths = os.pathsep.join(str(ROOT / name) for name in ("src", "tests", "."))
    own = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", COMPILED, backend], capture_output=True, text=True, cwd=ROOT, env=own)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_one_process_of_ddp_trains_alike(tmp_path):
    view, batches = made()
    other = copy.deepcopy(view)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(other)
        step(wrapped, batches)
        step(view, batches)
    finally:
        torch.distributed.destroy_process_group()
    assert view.state_dict().keys() == other.state_dict().keys()
    for a, b in zip(view.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# --- taps ---


def test_a_tap_shows_the_value_behind_an_operator_or_a_module():
    view, batches = made("chain", "int8")
    seen = {}
    for name in ("0", "1.1", "4"):
        view.tap(name).register_forward_hook(lambda *a, name=name: operator.setitem(seen, name, a[2]))
    (out,) = call(view.train(), batches[0])
    assert seen["4"] is out
    assert (seen["0"] >= 0).all()  # behind the module's last operator, a ReLU
    assert seen["1.1"].shape[1] == 6
    assert view.tap("0") is view.tap("0")
    with pytest.raises(TaskError, match="no operator or module 'no'"):
        view.tap("no")


def test_names_that_differ_by_a_dot_alone_are_kept_apart():
    model = nn.Sequential()
    model.add_module("a_b", nn.Linear(6, 6))
    model.add_module("a", nn.Sequential())
    model.a.add_module("b", nn.Linear(6, 6))
    made = task_of(model, (6,))
    view, batch = student(made, recipe()), made.calibration()[0]
    names = [n for n, _ in view.named_quantizers()]
    assert len(names) == len(set(names)) >= 3
    assert view.tap("a.b") is not view.tap("a_b")
    assert same(call(view.eval(), batch), call(network_of(step(view, [batch]).eval()), batch)) is False
    assert same(call(view.eval(), batch), call(network_of(view), batch))


# --- weights in half precision ---


@pytest.mark.parametrize("format", ["fp16", "bf16"])
def test_weights_that_are_stored_in_half_precision_train(format):
    made = task("chain")
    view, batches = student(made, recipe(**{"1__0": format, "4": format})), made.calibration()
    half = torch.float16 if format == "fp16" else torch.bfloat16
    stored = [n for n, t in network_of(view).tensors() if t.dtype == half]
    assert len(stored) == 2
    before = {n: t.clone() for n, t in network_of(view).tensors()}
    assert same(call(view.eval(), batches[0]), call(network_of(view), batches[0]))
    step(view, batches[:2])
    after = network_of(view)
    assert same(call(view.eval(), batches[0]), call(after, batches[0]))
    for n in stored:
        assert after.tensor(n).dtype == half
        assert not torch.equal(after.tensor(n), before[n])
    # Not rounded to half themselves, or small steps would be lost.
    weight = view.get_parameter("4.weight")
    assert not torch.equal(weight, weight.to(half).float())


# --- gradient checkpointing ---


def deep() -> nn.Module:
    blocks = [nn.Sequential(conv(3 if k == 0 else 8, 8), conv(8, 8)) for k in range(4)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def trained(view, batch) -> tuple[list[torch.Tensor], int]:
    """Loss, gradients and statistics of a step, and the elements that it kept for the backward pass."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(view, batch)
    loss.backward()
    values = [p.grad for p in view.parameters() if p.grad is not None]
    return [loss.detach(), *values, *(b.clone() for b in view.buffers())], kept


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_gradients_and_statistics_are_the_same_for_less_memory(frozen):
    made = task_of(deep(), (3, 16, 16))
    batch = made.calibration()[0]
    found = []
    for depth in (0, 2, 1):
        view = student(made, RECIPES["int4"]).train().freeze_batchnorm(frozen).checkpoint(depth)
        found.append(trained(view, batch))
    for values, _ in found[1:]:
        assert same(tuple(values), tuple(found[0][0]))
    assert found[2][1] < found[1][1] < found[0][1] / 2.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "shared norm", "cumulative", "words", "encoder", "named", "weight norm"])
@pytest.mark.parametrize("dropout", [False, True])
def test_every_network_can_be_checkpointed(name, dropout):
    batch = task(name).calibration()[0]
    found = []
    for depth in (0, 1):
        view = student(task(name), RECIPES["int8"], dropout=dropout).train().checkpoint(depth)
        torch.manual_seed(0)
        found.append(trained(view, batch))
    assert same(tuple(found[0][0]), tuple(found[1][0]))
    assert found[1][1] < found[0][1]


def test_stochastic_rounding_is_drawn_alike_when_it_is_computed_again():
    made = recipe("int4", "uint4")
    made = type(made)(
        steps=[made.steps[0].model_copy(update={"weights": made.weights.model_copy(update={"rounding": "stochastic"})})]
    )
    found = []
    for depth in (0, 1):
        view = student(task("residual"), made).train().checkpoint(depth)
        torch.manual_seed(0)
        found.append(trained(view, task("residual").calibration()[0])[0])
    assert same(tuple(found[0]), tuple(found[1]))


def test_a_tap_in_a_checkpointed_network_fires_once():
    view, batches = made("residual")
    fired = []
    view.checkpoint(1).tap("b").register_forward_hook(lambda *_: fired.append(1))
    loss_of(view.train(), batches[0]).backward()
    assert fired == [1]


def test_copies_and_eval_mode_of_a_checkpointed_network():
    view, batches = made("residual")
    step(view.checkpoint(1), batches[:1])
    file = io.BytesIO()
    torch.save(view, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert other._graphs.depth == 1
    assert same(call(view.eval(), batches[0]), call(network_of(other), batches[0]))
