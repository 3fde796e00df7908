"""The whole way on a small network, and what goes wrong on it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor.errors import CalibrationError, CheckpointError, EngineError, SavedFolderError, TaskError


def _batches(count=4, size=16):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 3, 8, 8, generator=generator),) for _ in range(count)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()


def _task(model, **changes):
    data = _batches()
    fields = {
        "name": "small",
        "model": model,
        "example": (torch.zeros(1, 3, 8, 8),),
        "calibration": lambda: data,
        "evaluate": lambda predict: (predict(data[0][0]).argmax(1) == model(data[0][0]).argmax(1)).float(),
        "metric": "agreement",
    }
    return tersor.Task(**{**fields, **changes})


@pytest.fixture(scope="module")
def done(model):
    return tersor.compress(_task(model), progress=False)


def test_the_report_holds_what_was_measured(done):
    report = json.loads(done.report.to_json())
    assert report["schema_version"] == 1
    assert report["samples"] == {"calibration": 64, "evaluation": 16}
    assert report["compressed"]["bytes"] > 0
    assert report["compressed"]["metric"] > 0.8
    assert sum(layer["weight_bytes"] for layer in report["layers"]) < done.network.weight_bytes()
    executed = {layer["name"]: layer["executed"] for layer in report["layers"]}
    assert executed["0"] == "int8"
    assert executed["4"] == "int8"


def test_engine_and_simulation_agree(done):
    x = _batches()[1][0]
    simulated = done.network(x)
    assert (done(x) - simulated).norm() / simulated.norm() < 0.02


def test_bias_correction_restores_the_means(model):
    data = _batches()
    done = tersor.compress(_task(model), "int8-static", "torch", report=False, progress=False)
    x = torch.cat([b[0] for b in data])
    with torch.no_grad():
        torch.testing.assert_close(done(x).mean(0), model(x).mean(0), rtol=0, atol=1e-5)


def test_saved_and_loaded_without_the_source(done, tmp_path):
    folder = done.save(tmp_path / "out")
    x = _batches()[0][0]
    loaded = tersor.load(folder)
    assert torch.equal(loaded(x), done(x))
    assert loaded.report == done.report
    (folder / "report.html").unlink()
    tersor.load(folder)


def test_a_folder_that_exists_is_kept(done, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(SavedFolderError, match="force"):
        done.save(tmp_path / "out")
    with pytest.raises(SavedFolderError, match=r"not replaced, also with --force.* no manifest\.json of Tersor's"):
        done.save(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (tmp_path / "out" / "mine.txt").unlink()
    done.save(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_an_interrupted_save_leaves_the_old_folder(done, tmp_path, monkeypatch):
    folder = done.save(tmp_path / "out")
    before = sorted(p.name for p in folder.iterdir())

    def interrupted(self, path):
        (path / "model.xml").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(type(done.runner), "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        done.save(folder, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize(("name", "said"), [("model.bin", "missing"), ("manifest.json", "no manifest")])
def test_a_missing_file_is_named(done, tmp_path, name, said):
    folder = done.save(tmp_path / "out")
    (folder / name).unlink()
    with pytest.raises(SavedFolderError, match=said):
        tersor.load(folder)


def test_an_altered_file_is_named(done, tmp_path):
    folder = done.save(tmp_path / "out")
    data = bytearray((folder / "model.bin").read_bytes())
    data[0] ^= 1
    (folder / "model.bin").write_bytes(data)
    with pytest.raises(SavedFolderError, match=r"model\.bin was altered"):
        tersor.load(folder)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "no batch"),
        ([(torch.full((2, 3, 8, 8), float("nan")),)], "NaN"),
        ([(torch.zeros(2, 4, 8, 8),)], "4 channels"),
        ([(torch.zeros(2, 3, 8, 8, dtype=torch.float64),)], "dtype"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2))], "2 arguments"),
        ([(torch.zeros(2, 3, 5, 5),)], "cannot run calibration batch 0"),
    ],
)
def test_bad_calibration_data_is_named(model, batches, said):
    with pytest.raises(CalibrationError, match=said):
        tersor.compress(_task(model, calibration=lambda: batches), report=False, progress=False)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_report")
@pytest.mark.parametrize(("answer", "said"), [(float("nan"), "nan"), (None, "NoneType")])
def test_a_judge_that_gives_no_number(model, answer, said):
    with pytest.raises(TaskError, match=said):
        tersor.compress(_task(model, evaluate=lambda predict: answer), progress=False)


def test_an_engine_that_is_absent_says_how_to_install_it(model, monkeypatch):
    monkeypatch.setattr("tersor.engines.openvino.OpenVINO.version", lambda self: None)
    with pytest.raises(EngineError, match="pip install openvino"):
        tersor.compress(_task(model), progress=False)


def test_without_vnni_weights_keep_to_seven_bits(model, cpu):
    cpu("avx2")
    done = tersor.compress(_task(model), engine="torch", report=False, progress=False)
    codes = [t for name, t in done.network.tensors() if name.endswith("codes")]
    assert codes
    assert max(int(c.abs().max()) for c in codes) == 63


def test_integer_arithmetic_by_hand(model):
    """The simulation of the last layer is what integers give: Σ (q_x − z)·q_w · s_x·s_w + b."""
    done = tersor.compress(_task(model), engine="torch", report=False, progress=False)
    network = done.network
    linear = next(n for n in network.operators() if n.name == "linear")
    weight = [network.tensor(a) for a in linear.args[1].args[:2]]
    seen = {}
    from tersor.network.network import walk

    walk(network, _batches()[0], lambda node, value: seen.__setitem__(node, value))
    quantizer = linear.args[0]
    while quantizer.name not in {n.name for n in network.operators() if "fake_quantize" in str(n.target)}:
        quantizer = quantizer.args[0]
    scale = network.tensor(quantizer.args[1]).double()
    codes = (seen[linear.args[0]].double() / scale).round().long()
    exact = (codes @ weight[0].long().T) * (scale * weight[1].double().T)
    np.testing.assert_allclose(
        (exact + network.tensor(linear.args[2])).numpy(), seen[linear].double().numpy(), rtol=1e-4, atol=1e-4
    )


def test_what_is_no_task_is_sent_to_where_it_belongs():
    with pytest.raises(TaskError, match=r"'llama/' is not a tersor.Task; for a language model's folder, use"):
        tersor.compress("llama/")
    with pytest.raises(TaskError, match=r"compress got a Linear, the model alone: give tersor.Task\(name, model"):
        tersor.compress(nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="what `hf download org/tiny-llama` prints"):
        tersor.compress_folder("org/tiny-llama", "out")
