"""The saved file alone, opened by the plain runtime with its defaults, computes what was measured."""

import pytest
import torch
from parts import Lambda, distance
from torch import nn

import tersor
from tersor.checkpoints.manifest import read_manifest
from tersor.engines import ENGINES
from tersor.engines.alone import SAME, UNLIKE, _distance
from tersor.engines.torch import Torch
from tersor.measure import read_report
from tersor.recipe import Recipe, Rule

KEPT = {
    "nothing kept": (),
    "a convolution": (Rule(layer="conv", keep="fp32"),),
    "a transposed convolution": (Rule(layer="up", keep="fp32"),),
    "a linear layer": (Rule(layer="hidden", keep="fp32"),),
    "an addition": (Rule(op="add", keep="fp32"),),
    "a product": (Rule(op="mul", keep="fp32"),),
    "a mean": (Rule(op="mean", keep="fp32"),),
}
OTHERS = ("int8-dynamic", "int8-weight", "int4-weight", "fp16")


def forward(m, x):
    y = m.first(x).relu()
    y = y + m.conv(y).relu()
    z = m.up(y).relu() * m.gate(x)
    h = z.mean((2, 3))
    return m.head(m.hidden(h).relu())


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    parts = {
        "first": nn.Conv2d(3, 16, 3, padding=1),
        "conv": nn.Conv2d(16, 16, 3, padding=1),
        "up": nn.ConvTranspose2d(16, 8, 1),
        "gate": nn.Conv2d(3, 8, 1),
        "hidden": nn.Linear(8, 40),
        "head": nn.Linear(40, 5),
    }
    model = Lambda(forward, **parts).eval()
    with torch.no_grad():
        # Weights that cancel, which 8 bits do not hold.
        model.conv.weight[:, 0], model.conv.weight[:, 1] = 9.0, -9.0
        model.hidden.weight[:, 0] *= 50
    data = [(torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(k)),) for k in range(3)]
    return tersor.Task("kept", model, (data[0][0][:1],), lambda: data), data[0][0]


def onnxruntime_alone(folder, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def openvino_alone(folder, x):
    import openvino

    # Which no file can hold: on CPUs with BF16 products OpenVINO computes float operators in BF16 unless told.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return torch.from_numpy(openvino.Core().compile_model(str(folder / "model.xml"), "CPU", options)([x.numpy()])[0])


ALONE = {"onnxruntime": onnxruntime_alone, "openvino": openvino_alone}


QUICK = {("an addition", "onnxruntime"), ("int8-weight", "openvino")}
EVERY = [(name, engine) for name in (*KEPT, *OTHERS) for engine in ALONE]


@pytest.mark.parametrize(
    ("name", "engine"), [pytest.param(*e, marks=[pytest.mark.slow] * (e not in QUICK)) for e in EVERY]
)
def test_the_file_alone_gives_the_runners_numbers(name, engine, task, tmp_path):
    task, x = task
    if engine == "onnxruntime" and name in ("fp16",):
        pytest.skip("compresses the weights alone, as in OpenVINO")
    recipe = Recipe(name="kept", rules=KEPT[name]) if name in KEPT else name
    done = tersor.compress(task, recipe, engine, threads=1, report=False, progress=False)
    alone = ALONE[engine](done.save(tmp_path / "saved"), x)
    assert distance(alone, done(x)) < 1e-5
    if name in KEPT:
        kept = {layer.node for layer in done.plan.layers if "rule" in layer.reason}
        assert bool(kept) == bool(KEPT[name])
        rows = [row for row in done.runner.executed() if row.nodes and row.nodes[0] in kept]
        # OpenVINO adds, in float, inside a convolution, and averages codes exactly.
        assert engine == "openvino" or {row.precision for row in rows} <= {"fp32"}


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_saving_compares_the_files_alone_with_the_runner(engine, task, tmp_path, monkeypatch):
    done = tersor.compress(task[0], "int8-weight", engine, threads=1, report=False, progress=False)
    checked = read_manifest(done.save(tmp_path / "saved"))["alone"]
    assert checked["difference"] <= SAME or "INFERENCE_PRECISION_HINT" in checked["note"]
    plain = type(ENGINES[engine]).plain
    monkeypatch.setattr(type(ENGINES[engine]), "plain", lambda self, folder: lambda x: plain(self, folder)(x * 2))
    assert read_manifest(done.save(tmp_path / "other"))["alone"]["difference"] > SAME


@pytest.mark.slow
def test_the_saved_report_says_that_the_files_alone_compute_something_else(task, tmp_path, monkeypatch):
    done = tersor.compress(task[0], "int8-weight", "torch", evaluate=False, progress=False)
    assert read_report(done.save(tmp_path / "same")).warnings == done.report.warnings
    plain = Torch.plain
    monkeypatch.setattr(Torch, "plain", lambda self, folder: lambda x: plain(self, folder)(x * 2))
    assert "the files alone" in read_report(done.save(tmp_path / "other")).warnings[-1]
    tersor.load(tmp_path / "other")


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        ([-INF, 1.0, 2.0], [-INF, 1.0, 2.0], True),
        ([-INF, 1.0, 2.0], [-INF, 100.0, 200.0], False),
        ([-3e38, 1.0], [-3e38, 1.5], False),
        ([NAN, 1.0], [0.0, 1.0], False),
        ([NAN, 1.0], [NAN, 1.0], True),
        ([0.0, 1.0], [0.0, 1.0001], True),
        ([1.0], [1.0, 1.0], False),
    ],
)
def test_masks_hide_no_difference(theirs, ours, same):
    found = _distance(torch.tensor(theirs), torch.tensor(ours))
    assert (found <= SAME) == same
    assert found <= UNLIKE, "it goes into JSON"


def test_a_runtime_that_does_not_run_the_files_loses_nothing(task, tmp_path, monkeypatch):
    def fails(*inputs):
        raise RuntimeError("no such kernel")

    done = tersor.compress(task[0], "int8-weight", "torch", threads=1, report=False, progress=False)
    monkeypatch.setattr(Torch, "plain", lambda self, folder: fails)
    assert "no such kernel" in read_manifest(done.save(tmp_path / "saved"))["alone"]["note"]
