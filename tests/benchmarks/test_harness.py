"""The harness judges, writes and tabulates claims as they are."""

import json
import sys
from importlib import import_module

import pytest

from benchmarks import __main__ as everything
from benchmarks import common, table
from benchmarks.common import Claim, Outcome


def test_a_bound_holds_at_its_edge_and_not_beyond():
    assert Claim("kl", "a", 5.0, 5.0).reached is True
    assert Claim("kl", "a", 5.001, 5.0).reached is False
    assert Claim("size", "a", 3.9, 3.9, at_most=False).reached is True
    assert Claim("size", "a", 3.899, 3.9, at_most=False).reached is False
    assert Claim("per_tensor", "the collapse", 80.0).reached is None
    assert Claim("kl", "a", float("nan"), 5.0).reached is False


def test_a_line_is_reached_only_where_all_its_claims_are():
    good, bad, beside = Claim("kl", "a", 1.0, 5.0), Claim("kl", "b", 9.0, 5.0), Claim("kl", "c", 9.0)
    assert table.verdict([good, beside]) == "reached"
    assert table.verdict([good, bad, beside]) == "**missed** (1 of 2)"
    assert table.verdict([beside]) == table.verdict([]) == "not measured"


def test_claims_survive_the_file(tmp_path):
    claim = Claim("over_nncf", "MobileNetV2", 1.02, 1.05, spread=(0.98, 1.07), peer="NNCF 2.80 ms")
    path = common.write("speed", Outcome([claim], {"ours": 2.86}), 12.0, tmp_path)
    data = json.loads(path.read_text())
    assert [table.read(entry) for entry in data["claims"]] == [claim]
    assert data["claims"][0]["reached"] is True
    assert data["environment"]["threads"] == common.THREADS


def test_the_table_names_every_line_and_shows_what_was_missed(tmp_path):
    reached = [Claim("simulation", f"net {k}", 0.1, 0.3) for k in range(30)]
    missed = Claim("simulation", "net that differs", 0.4, 0.3, unit="points")
    common.write("one", Outcome([*reached, missed], {}), 1.0, tmp_path)
    beside = Claim("kl", "2048 bins", 4.0, 5.0, unit="ms", peer="theirs 600 ms")
    common.write("two", Outcome([beside], {}), 1.0, tmp_path)
    text = table.table(tmp_path)
    summary, sections = text.split("## ", 1)
    assert all(what in summary for what, _ in table.LINES.values())
    assert "net that differs: 0.40 points" in summary
    assert "**missed** (1 of 31)" in summary
    assert "theirs 600 ms" in summary
    assert summary.count("not measured") == len(table.LINES) - 2
    assert sections.count("| net ") == 31


def test_a_quick_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    seen = []

    def bench(quick):
        seen.append(quick)
        return Outcome([Claim("kl", "a", 9.0, 5.0)], {})

    common.main("smoke", bench, tmp_path)
    assert seen == [True]
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out.startswith("MISSED")


def test_a_bench_that_is_not_there_is_named(capsys):
    assert everything.main(["speed_of_light"]) == 2
    assert "speed_of_light" in capsys.readouterr().err


@pytest.mark.parametrize("name", everything.BENCHES)
def test_every_bench_can_be_imported(name):
    pytest.importorskip("onnx")
    module = __import__(f"benchmarks.{name}", fromlist=["bench"])
    assert callable(module.bench)
    assert module.__doc__


@pytest.mark.slow
@pytest.mark.real
def test_a_bench_runs(shared):
    pytest.importorskip("nncf")
    pytest.importorskip("onnxruntime")
    from benchmarks import audit

    outcome = audit.bench(quick=True)
    assert {c.line for c in outcome.claims} == {"audit", "one_step", "size"}
    assert all(c.reached is not False for c in outcome.claims)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("accuracy_transformers", {"static_sts"}),
        ("architectures", {"architectures"}),
        ("quantize_cost", {"quantize_cost", "linear_size"}),
    ],
)
def test_benches_of_transformers_run(shared, name, lines):
    pytest.importorskip("nncf")
    outcome = import_module(f"benchmarks.{name}").bench(quick=True)
    assert {c.line for c in outcome.claims} == lines
    # Few sentences and a busy machine decide nothing; bytes, memory and what is taken do.
    judged = [c for c in outcome.claims if c.line != "static_sts" and c.unit != "s"]
    assert all(c.reached for c in judged)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("gptq_time", {"gptq_time"}),
        ("exactobs_time", {"exactobs_time"}),
        ("gptq_minilm", {"llm_embeddings"}),
        ("llm_accuracy", {"llm_share", "llm_order"}),
        ("llm_sparse", {"llm_sparse"}),
        ("llm_stream", {"llm_memory"}),
        ("llm_resume", {"llm_resume"}),
    ],
)
def test_benches_of_language_models_run(shared, name, lines):
    outcome = import_module(f"benchmarks.{name}").bench(quick=True)
    assert {c.line for c in outcome.claims} == lines
    # Small layers and few windows decide neither times nor ranks.
    assert all(c.reached for c in outcome.claims if c.line in ("llm_embeddings", "llm_resume", "llm_memory"))
