"""Folders opened on the meta device by the reader that is said to read them."""

import pytest
import torch

from tersor.checkpoints import readers
from tersor.checkpoints.readers import open_as_reader
from tersor.errors import CheckpointError
from tersor.numerics import QuantSpec
from tests.checkpoints.tiny_llama import quantized, tiny_llama, write_folder

SPEC = QuantSpec("int8", "channel")


@pytest.fixture
def stored(tmp_path):
    from tersor.checkpoints.hf_folder import HfFolder

    model = tiny_llama()
    folder = HfFolder(write_folder(tmp_path / "out", model, quantized(model, lambda name: SPEC), "compressed-tensors"))
    return folder.config, {n: torch.empty(e.shape, dtype=e.dtype, device="meta") for n, e in folder.entries.items()}


UP = "model.layers.0.mlp.up_proj.weight"


def grown(tensors, name):
    tensors[name] = torch.empty(1, *tensors[name].shape, dtype=tensors[name].dtype, device="meta")


BROKEN = {
    "a scale is missing": (lambda w: w.pop(f"{UP}_scale"), rf"lacks {UP}_scale, which it would initialize"),
    "a norm is missing": (lambda w: w.pop("model.norm.weight"), "lacks model.norm.weight"),
    "a tensor is strange": (lambda w: w.update(strange=torch.empty(2, device="meta")), "does not know strange"),
    "a norm has another shape": (lambda w: grown(w, "model.norm.weight"), "another shape of model.norm.weight"),
}


def test_a_whole_folder_is_opened_without_a_word(stored, capfd):
    state = torch.random.get_rng_state()
    assert open_as_reader(*stored) == []
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("case", BROKEN)
def test_what_the_reader_would_miss_is_named(case, stored):
    harm, text = BROKEN[case]
    config, tensors = stored
    harm(tensors)
    with pytest.raises(CheckpointError, match=text):
        open_as_reader(config, tensors)


def test_what_the_original_had_too_is_no_fault(stored):
    config, tensors = stored
    tensors["strange"] = torch.empty(2, device="meta")
    assert open_as_reader(config, tensors, known=["strange"]) == []


def test_a_format_that_the_reader_refuses_is_an_error(stored):
    config, tensors = stored
    config["quantization_config"]["quantization_status"] = "own"
    with pytest.raises(CheckpointError, match="transformers cannot open the result as LlamaForCausalLM"):
        open_as_reader(config, tensors)


def test_a_reader_that_is_not_installed_is_said_to_be_missing(stored, monkeypatch):
    config, tensors = stored
    monkeypatch.setitem(readers._PACKAGES, "compressed-tensors", ("not_installed_anywhere",))
    assert "not_installed_anywhere: not installed here" in open_as_reader(config, tensors)[0]
    assert "no class for this architecture" in open_as_reader(config | {"architectures": ["Own"]}, tensors)[0]
