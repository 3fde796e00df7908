"""In which engine a language model is loaded, and what is said where the wanted one cannot take it."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from toy_engine import Parrot, Toy
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.engines import ENGINES
from tersor.engines.openvino import OpenVINO
from tersor.engines.openvino.decoder import OpenVinoDecoder
from tersor.errors import CaptureError, CheckpointError, EngineError

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 48, "n_positions": 64}
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **IDS)),
    # Which experts are asked depends on the values: torch.export, and so OpenVINO, does not take it.
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SMALL, **IDS, num_local_experts=2, num_experts_per_tok=1)
    ),
}
WORDS = {f"w{k}": k for k in range(48)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = {}
    for kind, make in MODELS.items():
        torch.manual_seed(0)
        found[kind] = tmp_path_factory.mktemp(kind)
        make().save_pretrained(found[kind])
        words = Tokenizer(WordLevel(WORDS, unk_token="w3"))
        words.pre_tokenizer = Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token="w1", eos_token="w2", unk_token="w3"
        ).save_pretrained(found[kind])
    return found.get


@pytest.fixture
def no_openvino(monkeypatch):
    def refuse(*_, **__):
        raise EngineError("OpenVINO is away\nfor long")

    monkeypatch.setattr(OpenVINO, "decoder", refuse)


def generated(*words):
    done = CliRunner().invoke(app, ["generate", *map(str, words), "-p", "w5 w9", "--tokens", "4"])
    return done, done.stderr.splitlines() if done.exit_code == 0 else []


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_auto_is_openvino_where_it_takes_the_model(engine, folder, monkeypatch):
    made, wanted = object(), []
    monkeypatch.setattr(OpenVinoDecoder, "build", lambda model, weights, threads, **_: wanted.append(threads) or made)
    # A warning would be an error.
    found = tersor.load(folder("gpt2"), 3, engine)
    assert (found.model, found.engine) == (made, "openvino")
    assert wanted == [3]


def test_auto_is_torch_where_openvino_does_not_take_the_model_and_says_why(folder):
    with pytest.warns(UserWarning, match=r"mixtral.* runs in torch, .*: torch\.export cannot capture") as said:
        model = tersor.load(folder("mixtral"), engine="auto")
    assert [w.filename for w in said] == [__file__]
    ids = torch.tensor([[5, 9, 20]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tersor.load(folder("mixtral"))(ids).logits)


def test_an_engine_that_is_named_fails_loudly(folder):
    with pytest.raises(CaptureError, match=r"torch\.export cannot capture"):
        tersor.load(folder("mixtral"), engine="openvino")
    done, _ = generated(folder("mixtral"), "--engine", "openvino")
    assert isinstance(done.exception, CaptureError)
    with pytest.raises(EngineError, match="engine 'cuda' does not run language models: choose openvino, torch or auto"):
        tersor.load(folder("gpt2"), engine="cuda")


def test_openvino_that_is_not_here_is_an_error_only_where_it_was_named(folder, no_openvino):
    with pytest.warns(UserWarning, match=r"does not support this model: OpenVINO is away$"):
        assert isinstance(tersor.load(folder("gpt2"), engine="auto").model, transformers.GPT2LMHeadModel)
    with pytest.raises(EngineError, match="away"):
        tersor.load(folder("gpt2"), engine="openvino")


def test_a_damaged_folder_is_no_reason_for_another_engine(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder("gpt2") / "config.json").read_bytes())
    with pytest.raises(CheckpointError):
        tersor.load(tmp_path, engine="auto")


@pytest.mark.slow
def test_the_command_takes_openvino_by_itself_and_torch_when_told(folder):
    done, said = generated(folder("gpt2"))
    assert len(said) == 1
    assert said[0].startswith("4 tokens in ")
    assert said[0].endswith(", in openvino")
    other, said = generated(folder("gpt2"), "--engine", "torch")
    assert said[-1].endswith(", in torch")
    assert done.stdout == other.stdout
    assert done.stdout.split()[:2] == ["w5", "w9"]


def test_the_command_goes_on_in_torch_and_says_why_in_one_line(folder, no_openvino):
    done, said = generated(folder("gpt2"))
    assert said[0] == "running in torch, as openvino does not support this model: OpenVINO is away"
    assert said[-1].endswith(", in torch")
    assert done.stdout == generated(folder("gpt2"), "--engine", "torch")[0].stdout


def test_a_decoder_of_another_engine_is_found_in_the_table(folder, monkeypatch):
    monkeypatch.setitem(ENGINES, "toy", Toy())
    assert isinstance(tersor.load(folder("gpt2"), engine="toy").model, Parrot)
    done, said = generated(folder("gpt2"), "--engine", "toy")
    assert done.stdout.split() == ["w5", "w9", *["w7"] * 4]
    assert said[-1].endswith(", in toy")
