"""Language models trained block by block and end to end: what the folder holds, the report says, and is refused."""

import hashlib

import pytest
import torch
import transformers

import tersor
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import RecipeError
from tersor.measure.language import read_language_report
from tersor.pipeline.folder.journal import Journal
from tersor.pipeline.folder.trained import whole
from tersor.pipeline.graph.host import GRAPH
from tersor.recipe import Quantization, Recipe
from tests.pipeline.tiny_folders import LM, MODELS

TOKENS = torch.randint(3, 47, (32, 32), generator=torch.Generator().manual_seed(1))
BLOCKS = {
    "epochs": 2, "batch": 4, "weight_rate": 0.03, "scale_rate": 0.01, "end_to_end_epochs": 2, "end_to_end_rate": 0.01,
}  # fmt: skip


def recipe(blocks=BLOCKS, **options):
    weights = Quantization(format="int2", granularity="group:16", symmetric=False)  # rounded to nearest
    float_ = Quantization(format="fp32")
    quantize = {"weights": weights, "activations": float_, "bias_correction": False} | options
    steps = [{"quantize": quantize}] + ([] if blocks is None else [{"train": {"blocks": blocks}}])
    return Recipe(name="w2", steps=steps)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("training") / "llama"
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LM, initializer_range=0.2)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def held():
    return torch.randint(3, 47, (4, 16), generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def trained(source, held, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "out"
    return tersor.compress_folder(source, out, recipe(), TOKENS, evaluate=held, progress=False)


def digests(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.glob("*.safetensors")}


@torch.no_grad()
def nats(model, ids):
    """The cross-entropy of every token but the first of each window."""
    logits = model(input_ids=ids).logits.double()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()


def test_the_folder_holds_what_was_trained_and_the_report_what_it_measured(held, trained):
    report, folder = trained.report, trained.folder
    assert [t.name for t in report.training] == ["model.layers.0", "model.layers.1", ""]
    for line in report.training:
        assert line.kept > 0
        assert line.after == min(line.curve) < line.before
    assert all(w.method.endswith(", trained") and w.error is None for w in report.weights if w.format)
    assert read_language_report(folder) == report
    assert nats(tersor.load(folder).model, held) == pytest.approx(report.compressed.nats, rel=1e-5)
    assert trained.recipe == recipe()
    assert [step.name for step in trained.subject.history] == ["quantize", "train"]


def test_training_loses_less_than_the_solver_alone(source, held, trained, tmp_path):
    alone = tersor.compress_folder(source, tmp_path / "out", recipe(None), TOKENS, evaluate=held, progress=False)
    assert alone.report.training == ()
    assert trained.report.divergence.nats < alone.report.divergence.nats
    names = QuantizedFolder(alone.folder).quantized
    assert names == QuantizedFolder(trained.folder).quantized
    assert trained.report.compressed_bytes == alone.report.compressed_bytes


def test_what_pruning_left_is_trained(source, held, tmp_path):
    found = {}
    for name, blocks in (("alone", None), ("trained", BLOCKS)):
        steps = ({"prune": {"target": "25% mlp"}}, *recipe(blocks).steps)
        found[name] = tersor.compress_folder(
            source, tmp_path / name, Recipe(steps=steps), TOKENS, evaluate=held, progress=False
        )
    alone, trained = found.values()
    assert [step.name for step in trained.subject.history] == ["prune", "quantize", "train"]
    assert trained.report.divergence.nats < alone.report.divergence.nats
    assert trained.report.compressed_bytes == alone.report.compressed_bytes
    assert all(line.after < line.before for line in trained.report.training)
    assert trained.prunings == alone.prunings
    assert nats(tersor.load(trained.folder).model, held) == pytest.approx(trained.report.compressed.nats, rel=1e-5)


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_that_was_stopped_is_taken_up_to_the_same_bytes(number, source, held, trained, tmp_path, monkeypatch):
    write = Journal.write

    def stopped(self, k, *rest):
        write(self, k, *rest)
        if k == number:  # the last block, or the scales of the whole model
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        tersor.compress_folder(source, tmp_path / "out", recipe(), TOKENS, evaluate=held, progress=False)
    monkeypatch.undo()
    again = tersor.compress_folder(source, tmp_path / "out", recipe(), TOKENS, evaluate=held, progress=False)
    assert digests(again.folder) == digests(trained.folder)
    assert again.report.training == trained.report.training
    assert again.report.divergence == trained.report.divergence


def test_training_that_does_not_pay_off_is_undone_and_said(source, held, tmp_path):
    wild = BLOCKS | {"weight_rate": 100.0, "scale_rate": 5.0, "end_to_end_rate": 1.0}
    done = tersor.compress_folder(source, tmp_path / "a", recipe(wild), TOKENS, evaluate=held, progress=False)
    alone = tersor.compress_folder(source, tmp_path / "b", recipe(None), TOKENS, evaluate=held, progress=False)
    assert done.report.divergence.nats == pytest.approx(alone.report.divergence.nats, rel=0.02)
    (said,) = [w for w in done.report.warnings if "training did not lower" in w]
    assert "model.layers.0, model.layers.1, the scales, end to end" in said
    assert all("trained" not in w.method for w in done.report.weights)


def test_scales_are_not_trained_where_the_whole_model_does_not_fit(source, tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "_needed", lambda job: 10**18)
    done = tersor.compress_folder(source, tmp_path / "out", recipe(), TOKENS, progress=False)
    assert [t.name for t in done.report.training] == ["model.layers.0", "model.layers.1"]
    assert any("the whole model in memory takes" in w for w in done.report.warnings)


def refused(source, tmp_path, asked, data, said):
    with pytest.raises(RecipeError, match=said):
        tersor.compress_folder(source, tmp_path / "out", asked, data, progress=False)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_trained_is_refused_before_anything_runs(source, tmp_path):
    refused(source, tmp_path, recipe(), None, "`train` of the recipe w2 asks for calibration text")
    sparse = recipe(sparsity="2:4", weights=Quantization(format="fp32"))
    refused(source, tmp_path, sparse, TOKENS, "q_proj is pruned")
    steps = [{"train": {"blocks": {}}}, recipe().steps[0]]
    refused(source, tmp_path, Recipe(steps=steps), TOKENS, "train, quantize; a folder is trained once, behind")
    steps = [recipe().steps[0], {"train": {"epochs": 3}}]
    refused(source, tmp_path, Recipe(steps=steps), TOKENS, "`epochs: 3` .* trained block by block, as `blocks` says")


@pytest.mark.slow
def test_weights_are_trained_end_to_end_where_asked(source, held, trained, tmp_path):
    asked = recipe(BLOCKS | {"end_to_end": "weights"})
    done = tersor.compress_folder(source, tmp_path / "out", asked, TOKENS, evaluate=held, progress=False)
    assert nats(tersor.load(done.folder).model, held) == pytest.approx(done.report.compressed.nats, rel=1e-5)
    assert done.report.training[-1].kept
    assert digests(done.folder) != digests(trained.folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma2", "qwen2_moe", "bloom", "falcon"])
def test_blocks_of_other_architectures_are_trained(kind, tmp_path):
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(tmp_path / "source")
    runs = [
        tersor.compress_folder(
            tmp_path / "source", tmp_path / name, recipe(blocks), TOKENS, evaluate=TOKENS, progress=False
        ).report
        for name, blocks in (("trained", BLOCKS), ("alone", None))
    ]
    assert any(t.kept for t in runs[0].training)
    assert runs[0].divergence.nats < runs[1].divergence.nats
    assert nats(tersor.load(tmp_path / "trained").model, TOKENS) == pytest.approx(runs[0].compressed.nats, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rotate": True}, {"awq": True}])
def test_rewritten_blocks_are_trained(options, source, held, tmp_path):
    done = tersor.compress_folder(source, tmp_path / "a", recipe(**options), TOKENS, evaluate=held, progress=False)
    alone = tersor.compress_folder(
        source, tmp_path / "b", recipe(None, **options), TOKENS, evaluate=held, progress=False
    )
    assert done.report.divergence.nats < alone.report.divergence.nats
    assert nats(tersor.load(done.folder).model, held) == pytest.approx(done.report.compressed.nats, rel=1e-4)


def test_a_graph_is_not_trained_block_by_block():
    with pytest.raises(RecipeError, match="`blocks` of the recipe int2-train is for folders"):
        GRAPH.check(tersor.recipe.resolve("int2-train"))
