"""One type of result, whatever was compressed and however it came back; and its way to other engines."""

import copy

import pytest
import torch
import transformers
from parts import conv, head, task_of
from torch import nn

import tersor
from tersor import Compressed
from tersor.engines import engine as find_engine
from tersor.engines.openvino_decoder import OpenVinoDecoder
from tersor.errors import EngineError, SavedFolderError
from tersor.pipeline.folder import deployed

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 48, "max_position_embeddings": 64, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
IDS = torch.tensor([[5, 9, 20]])


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    return task_of(nn.Sequential(conv(3, 8), head(8)), (3, 8, 8))


def compressed(task):
    return tersor.compress(task, engine="torch", threads=1, report=False, progress=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def language(source, tmp_path):
    return tersor.compress_folder(source, tmp_path / "out", "int8-weight", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_compiled_for_another_engine_it_gives_that_engines_numbers(task, target):
    done = compressed(task)
    moved = done.compile(target, threads=1)
    assert (moved.engine, moved.network, moved.plan, moved.recipe) == (target, done.network, done.plan, done.recipe)
    alone = find_engine(target).compile(done.network, threads=1)
    assert torch.equal(moved(X), alone(X))
    assert not torch.equal(moved(X), done(X)), "two engines that compute the same to the bit tell nothing"
    assert done.engine == "torch"


def test_what_was_measured_in_one_engine_is_not_said_of_another(task):
    done = compressed(task)
    measured = Compressed(done.subject, done.recipe, "a report", done.deployed)
    assert measured.compile("openvino").report is None


@pytest.mark.slow
def test_a_loaded_simulation_moves_to_an_engine_and_is_saved_there(task, tmp_path):
    done = compressed(task)
    loaded = tersor.load(done.save(tmp_path / "simulated"))
    moved = loaded.compile("openvino", threads=1)
    assert torch.equal(moved(X), done.compile("openvino", threads=1)(X))
    again = tersor.load(moved.save(tmp_path / "moved"), threads=1)
    assert (again.engine, again.inputs) == ("openvino", done.inputs)
    assert torch.equal(again(X), moved(X))
    with pytest.raises(EngineError, match=r"loaded from the files of openvino, which hold no Tersor graph.*for torch"):
        again.compile("torch")


def test_what_the_target_cannot_express_is_its_own_error(task):
    with pytest.raises(EngineError, match=r"tensorrt cannot run uint8 activations; .*compress again for tensorrt"):
        compressed(task).compile("tensorrt")
    with pytest.raises(EngineError, match="no engine 'tpu'"):
        compressed(task).compile("tpu")


def test_a_network_has_nothing_of_a_language_model(task, tmp_path):
    done = compressed(task)
    assert (done.folder, done.model) == (None, done.runner)
    with pytest.raises(AttributeError, match="Compressed has no attribute 'weights'"):
        _ = done.weights
    with pytest.raises(EngineError, match="only a language model in a folder generates"):
        done.generate(IDS)
    assert copy.copy(done).engine == "torch"


def test_neither_the_model_nor_the_data_is_kept(task):
    subject = compressed(task).subject
    assert (subject.model, subject.details) == (None, None)
    assert len(subject.history) == 1


def test_one_type_for_networks_and_folders_made_or_loaded(task, language, tmp_path):
    done = compressed(task)
    made = [done, tersor.load(done.save(tmp_path / "net")), language, tersor.load(language.folder)]
    assert [type(x) for x in made] == [Compressed] * 4


def test_a_compressed_folder_is_read_like_its_report_and_loads_nothing(language, monkeypatch):
    monkeypatch.setattr(deployed, "load_language", None)
    report = language.report
    assert (language.weights, language.headline(), language.compression) == (
        report.weights, report.headline(), report.compression,
    )  # fmt: skip
    assert language.to_json() == report.to_json()
    assert (language.recipe.name, report.recipe) == ("int8-weight", "int8-weight")
    assert {t.name for t in language.plan} == {w.name for w in report.weights}
    with pytest.raises(AttributeError, match=r"'config'; its model is not loaded yet, and `\.model` loads it"):
        _ = language.config


def test_its_model_is_loaded_once_when_it_is_asked_for(language):
    model = language.model
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert language.model is language.runner is model
    assert language.config is model.config
    with torch.no_grad():
        assert torch.equal(language(IDS).logits, model(IDS).logits)
    with pytest.raises(AttributeError, match=r"neither Compressed nor the report has an attribute 'perplexty'$"):
        _ = language.perplexty


def test_a_loaded_folder_is_used_like_its_model(language):
    loaded = tersor.load(language.folder)
    assert loaded.report == language.report
    assert loaded.recipe == language.recipe
    assert loaded.state_dict().keys() == loaded.model.state_dict().keys()
    assert next(loaded.parameters()).dtype == torch.float32
    out = loaded.generate(IDS, max_new_tokens=3, do_sample=False)
    assert torch.equal(out, loaded.model.generate(IDS, max_new_tokens=3, do_sample=False))


def test_a_folder_of_others_has_no_report(source):
    loaded = tersor.load(source)
    assert (loaded.report, loaded.engine, loaded.folder) == (None, "torch", source)


@pytest.mark.slow
def test_a_folder_moves_to_openvino_and_back(language):
    moved = language.compile("openvino", threads=1)
    assert isinstance(moved.model, OpenVinoDecoder)
    assert (moved.engine, moved.report, moved.folder) == ("openvino", language.report, language.folder)
    with torch.no_grad():
        torch.testing.assert_close(moved(IDS), language(IDS).logits, rtol=0.05, atol=0.05)
    assert moved.compile("torch").engine == "torch"
    assert language.compile("auto", threads=1).engine == "openvino"
    with pytest.raises(EngineError, match="in torch a language model computes in its own dtype, not in bf16"):
        moved.compile("torch", precision="bf16")


def test_a_folder_is_saved_as_a_copy(language, tmp_path):
    copied = language.save(tmp_path / "copy")
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == {
        p.name: p.read_bytes() for p in language.folder.iterdir()
    }
    assert tersor.load(copied).report == language.report
    with pytest.raises(SavedFolderError, match="exists: choose another folder"):
        language.save(tmp_path / "copy")
