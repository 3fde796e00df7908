"""The long rows of training are skipped, resumed, paired and judged as they should, each kind of row in short."""

import os
from dataclasses import dataclass

import pytest
import torch

from benchmarks import common, table, train_cifar, trained_cifar
from benchmarks.training import rows
from benchmarks.training.rows import Place


@dataclass(frozen=True)
class Toy:
    """A row that fails when it is asked to."""

    epochs: int
    minutes: float = 1.0
    fails: bool = False

    def about(self, seed):
        return {"epochs": self.epochs, "seed": seed}

    def __call__(self, place):
        if self.fails:
            raise RuntimeError("no data")
        place.folder.mkdir(parents=True)  # there is none yet: a changed row starts anew
        return {"top1": 90.0 + self.epochs}


def test_a_row_is_measured_again_only_if_its_parameters_changed(monkeypatch, tmp_path, capsys):
    where = {"results": tmp_path / "results", "work": tmp_path / "work"}
    rows_of = {"one": Toy(1), "bad": Toy(1, fails=True)}
    monkeypatch.setattr(train_cifar, "ROWS", rows_of)
    assert train_cifar.bench(["one", "bad"], **where) == ["bad"]
    first = rows.path_of("one", 0, where["results"])
    written = first.read_text()
    assert not rows.path_of("bad", 0, where["results"]).exists()
    assert train_cifar.bench(["one"], **where) == []
    assert "done before, with the same parameters: one" in capsys.readouterr().err
    assert first.read_text() == written
    rows_of["one"] = Toy(2)
    assert train_cifar.bench(["one"], **where) == []
    assert rows.stored("one", 0, where["results"])["figures"] == {"top1": 92.0}
    assert train_cifar.bench(["one"], again=True, **where) == []
    assert train_cifar.bench(["one"], seed=1, **where) == []
    assert rows.path_of("one", 1, where["results"]).name == "one-seed1.json"


def test_rows_become_claims_that_are_paired_picture_by_picture(monkeypatch, tmp_path):
    monkeypatch.setattr(trained_cifar, "LONG", tmp_path)
    monkeypatch.setattr(rows, "surroundings", lambda seconds: {"date": "2026-11-30", "seconds": seconds})

    def write(name, wrong, seed=0, **figures):
        hits = torch.ones(10_000)
        hits[:wrong] = 0
        found = rows.judged(hits, torch.ones(10_000)) | figures

        class Row(Toy):
            def __call__(self, place):
                return found

        rows.measured(name, Row(1), Place(tmp_path / "work", seed), tmp_path)

    write("w4a4", 860)
    write("w4a4", 900, seed=1)  # the mean is 91.2
    write("w4a4-brevitas", 861, versions={"brevitas": "0.13"})
    write("w2a2-short", 1500)
    write("w2a2-brevitas", 1200, versions={"brevitas": "0.13"})
    write("w8a8-openvino", 5, apart=0.06)
    write("ternary", 900)
    write("admm-ternary", 931)
    write("sparse-90", 940)
    write("sparse-magnitude", 1300)
    write("sparse-obs", 1260)
    faster = {"faster": 1.6, "spread": [1.5, 1.7], "apart": 0.02, "before": 0.1}
    write("pruned-halved", 710, **faster)
    write("pruned-faster", 690, **faster)
    write("distill-alone", 2000)
    write("distill-logits", 1940)
    write("distill-hints", 2100)
    write("distill-alone-short", 4000)
    write("distill-mse-short", 4100)
    claims = trained_cifar.bench(False).claims
    seen = [(c.line, c.what.split(" (")[0], round(c.ours, 2), c.reached) for c in claims]
    assert seen == [
        ("train_few_bits", "W4A4, 3 epochs, 2 seeds", 91.2, True),
        ("train_few_bits", "W2A2, 5 epochs", 85.0, False),
        ("train_weights", "ternary, 5 epochs", 91.0, True),
        ("train_sparse", "90 % zeros in float, 10 epochs", 90.6, True),
        ("train_w8a8", "openvino, lost", 0.05, True),
        ("train_w8a8", "openvino, lower end of that interval", 0.01, False),
        ("train_w8a8", "openvino, from its simulation", 0.06, False),
        ("train_admm", "ternary", 0.31, False),
        ("train_sparse", "OBS over magnitude, 90 % zeros in two rounds of 1 epoch", 0.4, True),
        ("train_pruned", "ResNet-56, half of the multiply-accumulates, 5 epochs", 92.9, False),
        ("train_pruned", "ResNet-56, half of the multiply-accumulates, 5 epochs", 1.6, None),
        ("train_pruned", "ResNet-56, half of the multiply-accumulates, 5 epochs", 0.02, True),
        ("train_pruned", "ResNet-56, target 1.5x latency, 5 epochs", 93.1, True),
        ("train_pruned", "ResNet-56, target 1.5x latency, 5 epochs", 1.6, True),
        ("train_pruned", "ResNet-56, target 1.5x latency, 5 epochs", 0.02, True),
        ("train_peers", "W4A4, 3 epochs, under brevitas", -0.01, True),
        ("train_peers", "W2A2, 5 epochs, under brevitas", 3.0, False),
        ("train_distilled", "logits, 10 epochs", 0.6, True),
        ("train_distilled", "hints, 10 epochs", -1.0, None),
        ("train_distilled", "mse, 1 epoch", -1.0, None),
    ]
    assert {line for line, *_ in seen} <= table.LINES.keys()
    assert "(2026-11-30)" in claims[0].what
    assert "FP32 100.00 %" in common.figure(claims[0]) + claims[0].peer


@pytest.mark.slow
@pytest.mark.real
def test_pictures_depend_on_the_seed_alone(shared):
    from training_pictures import Epoch, cropped, ready, seed_epoch, training_set

    assert [len(t) for t in training_set()] == [50_000, 50_000]
    whole, halves, other = [], [], []
    for found, batch, seed in ((whole, 128, 3), (halves, 64, 3), (other, 128, 4)):
        seed_epoch(seed, 1)
        for pair in Epoch(256, batch):
            torch.rand(1)  # what is drawn between two batches changes nothing
            found.append(pair)
    assert len(whole) == len(Epoch(256)) == 2
    for k, (x, y) in enumerate(whole):
        assert torch.equal(x, torch.cat([halves[2 * k][0], halves[2 * k + 1][0]]))
        assert torch.equal(y, torch.cat([halves[2 * k][1], halves[2 * k + 1][1]]))
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert not torch.equal(x, other[k][0])
    pixels = training_set()[0][:1]
    left = cropped(pixels, torch.tensor([[4, 0]]), torch.tensor([False]))
    assert torch.equal(left[..., 4:], pixels[..., :-4])
    assert not left[..., :4].any()
    assert torch.equal(ready(pixels)[0, 0, 0, 0], (pixels[0, 0, 0, 0] / 255 - 0.485) / 0.229)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("w8a8-openvino", {"apart", "simulated", "lost_interval", "training", "hits"}),
        ("w4a4", {"top1", "interval", "kept", "training_seconds"}),
        ("admm-ternary", {"top1", "notes"}),
        ("sparse-90", {"top1", "zeros", "zeros_by_layer"}),
        ("sparse-obs", {"top1", "zeros", "notes"}),
        ("pruned-halved", {"top1", "simulated", "faster", "macs"}),
        ("distill-dkd", {"top1", "lost"}),
        ("minilm", {"float", "rounded", "spearman", "lost_interval"}),
        ("step-cost", {"ratio", "spread", "milliseconds"}),
        ("kills", {"equal", "kills"}),
        ("processes", {"ranks_equal", "scales_apart_median", "one_top1"}),
        ("w4a4-brevitas", {"top1", "versions", "training"}),
        ("w4a4-torchao", {"top1", "versions", "training"}),
    ],
)
def test_a_row_runs_in_short(shared, tmp_path, name, keys):
    if name.endswith(("brevitas", "torchao")) and "TERSOR_PEERS_PYTHON" not in os.environ:
        pytest.skip("TERSOR_PEERS_PYTHON is not set")
    figures = rows.measured(name, train_cifar.ROWS[name], Place(tmp_path, quick=True), None)["figures"]
    assert keys <= figures.keys()
    assert figures.get("equal", 1) == figures.get("ranks_equal", 1) == 1


def test_every_row_says_what_it_depends_on():
    abouts = {name: rows.digest(row.about(0)) for name, row in train_cifar.ROWS.items()}
    assert len(set(abouts.values())) == len(abouts)
    drawn = {name for name, row in train_cifar.ROWS.items() if rows.digest(row.about(1)) != abouts[name]}
    assert train_cifar.ROWS.keys() - drawn == {"step-cost", "processes"}
