"""A whole search on a small network, with speeds that are made up: resumed, saved, judged, refused."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import RecipeError, SavedFolderError, TaskError
from tersor.files import parts_of
from tersor.measure import read_report
from tersor.pipeline.graph import measuring
from tersor.pipeline.graph.pruning import step
from tersor.search import bench as benches
from tersor.search import optimize as optimizing
from tersor.search.formats import Floats
from tests.pipeline.pruning.test_latency import MadeUp

SAMPLES = 400


def made(**options):
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 4),
    ).eval()  # fmt: skip
    x = nn.functional.avg_pool2d(torch.rand(SAMPLES, 1, 10, 10) * 2 - 1, 3, 1, 1)
    with torch.no_grad():
        out = net(x)
        net[-1].bias -= out.mean(0)
        labels = net(x).argmax(1)
    calls = []

    def evaluate(predict):
        calls.append(1)
        return torch.cat([predict(part).argmax(1) for part in x.split(100)]) == labels

    fields = {"evaluate": evaluate, "metric": "top-1 accuracy"} | options
    return tersor.Task("small", net, (x[:1],), lambda: x[:128].split(64), **fields), calls


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Prunings ask an engine whose latencies are made up, few of them are tried, and no process measures memory."""
    def unknown(*_args, **_options):
        raise tersor.TersorError("not here")

    monkeypatch.setattr(measuring, "measure_memory", unknown)
    monkeypatch.setattr(step, "Clock", MadeUp)
    monkeypatch.setattr("tersor.search.plans.MOST", 2)


def search(task, **options):
    given = {"engine": "torch", "budget": "10m", "progress": False, "threads": 1} | options
    return tersor.optimize(task, **given)


def test_the_best_is_saved_with_the_alternatives_and_judged_on_other_samples(tmp_path):
    task, calls = made()
    done = search(task, max_drop=8, folder=tmp_path / "best")
    contract = done.report.contract
    assert contract.goal == ("at most 8 points lost",)
    assert contract.apart
    assert contract.samples == SAMPLES // 2
    assert contract.bound == 0.08
    assert contract.evaluations == len(calls) <= 20
    assert read_report(tmp_path / "best") == done.report
    (chosen,) = (t for t in contract.tried if t.chosen)
    assert chosen.drop <= 0.08
    assert {t.folder for t in contract.tried} - {""} == (
        {p.name for p in (tmp_path / "best/front").iterdir()} if (tmp_path / "best/front").exists() else set()
    )
    x = task.example[0].repeat(5, 1, 1, 1)
    again = tersor.load(tmp_path / "best")
    torch.testing.assert_close(again(x), done(x))
    for t in contract.tried:
        if t.folder:
            tersor.load(tmp_path / "best/front" / t.folder)(x)
    assert {t.name for t in done.front} == {t.name for t in contract.tried if t.front}
    assert not parts_of(tmp_path / "best").exists()
    redone = tersor.compress(task, tmp_path / "best/recipe.yaml", "torch", report=False, progress=False, threads=1)
    assert torch.equal(redone(x), done(x))
    tersor.optimize(task, max_drop=8, engine="torch", folder=tmp_path / "best", force=True, narrower=False,
                    progress=False)  # fmt: skip


def test_a_search_that_was_stopped_measures_nothing_twice(tmp_path, monkeypatch):
    task, calls = made()
    tried = benches.Bench.tried

    def stopped(self, candidate, before):
        if candidate.kind == "pruned":
            raise RuntimeError("stopped")
        return tried(self, candidate, before)

    monkeypatch.setattr(benches.Bench, "tried", stopped)
    with pytest.raises(RuntimeError, match="stopped"):
        search(task, max_drop=8, folder=tmp_path / "best")
    first = len(calls)
    assert first == 3  # the original twice, and the first candidate
    spent = json.loads((parts_of(tmp_path / "best") / "job.json").read_text())["spent"]
    monkeypatch.setattr(benches.Bench, "tried", tried)
    done = search(task, max_drop=8, folder=tmp_path / "best")
    made_now = sum(not t.error for t in done.report.contract.tried[1:])
    assert made_now
    assert len(calls) - first == made_now + 3  # of the report
    assert done.report.contract.seconds > spent


def test_another_network_starts_anew(tmp_path, monkeypatch):
    task, _ = made()
    monkeypatch.setattr(optimizing, "proved", lambda *_args, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search(task, max_drop=50, folder=tmp_path / "best", narrower=False)
    other = nn.Sequential(nn.Flatten(), nn.Linear(100, 4)).eval()
    calls = []

    def evaluate(predict):
        calls.append(1)
        return (predict(torch.ones(30, 1, 10, 10)).argmax(1) == 0).double()

    with pytest.raises(ZeroDivisionError):
        search(replace(task, model=other, evaluate=evaluate), max_drop=50, folder=tmp_path / "best", narrower=False)
    assert len(calls) == 3


def test_an_interruption_ends_with_the_best_so_far(tmp_path, monkeypatch):
    task, _ = made()
    tried = benches.Bench.tried

    def stopped(self, candidate, before):
        if candidate.kind == "pruned":
            raise KeyboardInterrupt
        return tried(self, candidate, before)

    monkeypatch.setattr(benches.Bench, "tried", stopped)
    done = search(task, max_drop=8, folder=tmp_path / "best")
    assert len(done.report.contract.tried) == 1
    assert read_report(tmp_path / "best").contract == done.report.contract


def test_layers_are_rated_on_as_many_samples_as_there_is_time_for(monkeypatch):
    asked = []

    def rated(task, recipe, engine, compiled, samples, stages, *, target):
        asked.append(samples)
        return Floats((), ())

    monkeypatch.setattr(optimizing, "floats", rated)
    monkeypatch.setattr(optimizing, "proved", lambda *_args, **_options: 1 / 0)
    task, _ = made()
    for seconds, budget in ((0.2, "100s"), (0.001, "100s"), (3.0, "100s")):
        monkeypatch.setattr(benches.Bench, "seconds_of_a_sample", lambda self, s=seconds: s)
        with pytest.raises(ZeroDivisionError):
            search(task, min_speedup=0.001, budget=budget, narrower=False)
    assert len(asked) == 2
    assert asked[0] <= 5
    assert asked[1] == 64


def test_the_budget_ends_the_search(monkeypatch):
    monkeypatch.setattr(optimizing.Search, "_expected", lambda *_args: 1e9)
    task, _ = made()
    done = search(task, min_speedup=1000)
    assert [t.name for t in done.report.contract.tried] == ["int8-static"]
    assert any("not kept within the budget" in w for w in done.report.warnings)


def test_a_contract_that_is_not_kept_is_said_with_what_would_help():
    task, _ = made()
    done = search(task, min_speedup=1000, narrower=False)
    contract = done.report.contract
    assert not contract.kept
    assert not contract.proven
    assert any(w.startswith("contract: not kept") for w in done.report.warnings)


def test_one_number_is_chosen_and_judged_by_the_same_samples():
    task, _ = made()
    scores = task.evaluate
    done = search(replace(task, evaluate=lambda predict: float(scores(predict).double().mean())), max_drop=20,
                  narrower=False)  # fmt: skip
    contract = done.report.contract
    assert contract.kept
    assert not contract.proven
    assert "chance is unknown" in contract.verdict[0]
    assert contract.interval is None


@pytest.mark.parametrize(
    ("options", "fields", "error", "said"),
    [
        ({}, {}, RecipeError, "nothing is asked for"),
        ({"max_drop": 1}, {"evaluate": None}, TaskError, "no evaluate"),
        ({"max_drop": 1, "budget": 0.0001}, {}, RecipeError, "one evaluation takes"),
        ({"max_drop": 1, "recipe": "int8-qat"}, {}, RecipeError, "trains"),
        ({"max_drop": 1, "engine": "nothing"}, {}, tersor.TersorError, "nothing"),
        ({"max_drop": 1, "budget": "soon"}, {}, RecipeError, "budget"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_long_work(options, fields, error, said):
    task, _ = made(**fields)
    with pytest.raises(error, match=said):
        search(task, **options)


def test_an_evaluation_that_is_not_repeatable_is_refused():
    task, _ = made()
    draw = torch.Generator().manual_seed(0)
    scores = task.evaluate
    with pytest.raises(TaskError, match=r"and then .* for the same network"):
        search(replace(task, evaluate=lambda predict: scores(predict) * torch.rand(SAMPLES, generator=draw)),
               max_drop=1)  # fmt: skip


def test_a_folder_of_somebody_else_is_refused_first(tmp_path):
    task, calls = made()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(SavedFolderError):
        search(task, max_drop=1, folder=tmp_path / "mine", force=True)
    assert not calls


def test_a_result_of_one_recipe_has_no_front():
    task, _ = made()
    done = tersor.compress(task, engine="torch", report=False, progress=False)
    with pytest.raises(RecipeError, match="only a result of"):
        _ = done.front
