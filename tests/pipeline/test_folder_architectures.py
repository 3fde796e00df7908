"""Architectures of transformers as folders: compressed as they compute, or refused with the reason."""

import pytest
import torch
from transformers import CompressedTensorsConfig

import tersor
from tersor.checkpoints.hf_folder import HfFolder
from tersor.errors import CalibrationError, CaptureError, CheckpointError
from tests.pipeline.tiny_folders import MODELS, TOKENS, distance, said, written

QUICK = ("bloom", "t5", "rwkv")
REFUSED = {"t5_both": (CaptureError, "encoder and a decoder"), "llama4": (CheckpointError, "lacks model.layers.1")}
NOT_BY_TOKENS = ("clip",)
WHOLE = [n for n in MODELS if n not in REFUSED and n not in NOT_BY_TOKENS]


def quick_or_slow(names):
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


def by_transformers(model, out, report):
    """What transformers makes of the folder, opened as the report says; None if it says that it is not."""
    if any("not opened by transformers" in w for w in report.warnings):
        with pytest.raises(Exception, match="quantization_status"):
            type(model).from_pretrained(out)
        return None
    dense = any("with CompressedTensorsConfig(dequantize=True) alone" in w for w in report.warnings)
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dense else {}
    return type(model).from_pretrained(out, **options)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("name", quick_or_slow(WHOLE))
def test_eight_bits_compute_what_the_float_model_does_here_and_in_transformers(name, tmp_path):
    model = MODELS[name]()
    source, out = written(tmp_path / "source", model), tmp_path / "out"
    report = tersor.compress_folder(source, out, "int8-weight", progress=False).report
    matrices = {n for n, e in HfFolder(source).entries.items() if len(e.shape) > 1}
    assert {w.name.removesuffix(".weight") for w in report.weights} == {n.removesuffix(".weight") for n in matrices}
    assert all(w.format or w.note for w in report.weights)
    found, wanted = said(tersor.load(out).model), said(type(model).from_pretrained(source))
    assert distance(found, wanted) <= 0.1
    if (other := by_transformers(model, out, report)) is not None:
        assert distance(said(other), found) <= 1e-3


UNSTREAMED = {
    "deberta_v2": "changes the hidden states between", "openai_gpt": "changes the hidden states between",
    "xlnet": r"not with hidden states \[batch, length, width\]",
}  # fmt: skip
FOUR = tersor.Recipe(
    name="four", weights={"format": "int4", "granularity": "channel", "solver": "gptq"},
    activations={"format": "fp32"}, bias_correction=False,
)  # fmt: skip


@pytest.mark.parametrize("name", quick_or_slow([n for n in WHOLE if n not in ("mamba", "gpt_oss", *UNSTREAMED)]))
def test_gptq_calibrates_it(name, tmp_path):
    source = written(tmp_path / "source", MODELS[name]())
    report = tersor.compress_folder(source, tmp_path / "out", FOUR, TOKENS, progress=False).report
    solved = [w for w in report.weights if w.format]
    assert sum(w.error for w in solved if w.error) < sum(w.rtn_error for w in solved if w.rtn_error)


@pytest.mark.parametrize("name", UNSTREAMED)
def test_blocks_that_are_no_chain_are_not_calibrated(name, tmp_path):
    source = written(tmp_path / "source", MODELS[name]())
    with pytest.raises(CaptureError, match=rf"{UNSTREAMED[name]}.*int8-weight"):
        tersor.compress_folder(source, tmp_path / "out", FOUR, TOKENS, progress=False)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_streamed_or_read_is_refused_before_anything_is_written(name, tmp_path):
    kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        tersor.compress_folder(written(tmp_path / "a", MODELS[name]()), tmp_path / "out", "int8-weight", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_model_that_takes_more_than_tokens_is_compressed_beside_its_embedding(tmp_path):
    source = written(tmp_path / "source", MODELS["clip"]())
    report = tersor.compress_folder(source, tmp_path / "out", "int8-weight", progress=False).report
    assert {w.name.split(".")[0] for w in report.weights if w.format} == {"text_model"}
    with pytest.raises(CalibrationError, match="cannot be called with input_ids"):
        tersor.compress_folder(source, tmp_path / "more", "int4-gptq", TOKENS, progress=False)


@pytest.mark.parametrize("name", ["qwen2_moe", "granite_moe", "switch", "jamba"])
def test_routers_stay_float(name, tmp_path):
    report = tersor.compress_folder(
        written(tmp_path / "a", MODELS[name]()), tmp_path / "out", "int8-weight", progress=False
    ).report
    routers = [w for w in report.weights if "router" in w.name or w.name.endswith(("mlp.gate", "shared_expert_gate"))]
    assert routers
    assert {w.note for w in routers} == {"stays float: it is a router, which chooses between experts"}


def test_what_nobody_asked_to_change_stays_as_it_was_bit_by_bit(tmp_path):
    source = written(tmp_path / "source", MODELS["paligemma"]().to(torch.float16), torch_dtype="auto")
    tersor.compress_folder(source, tmp_path / "out", "int8-weight", progress=False)
    before, after = HfFolder(source), HfFolder(tmp_path / "out")
    kept = [n for n in before.entries if n in after.entries]
    assert len(kept) > 40
    for name in kept:
        a, b = before.tensor(name), after.tensor(name)
        assert a.dtype == b.dtype
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name


@pytest.mark.slow
def test_parts_of_a_model_run_without_a_cache(tmp_path):
    """A cache would make each call read the keys of those before; AWQ proves that the blocks compute the same again."""
    source = written(tmp_path / "source", MODELS["paligemma"]())
    awq = FOUR.model_copy(update={"steps": (FOUR.quantize.model_copy(update={"awq": True}),)})
    report = tersor.compress_folder(source, tmp_path / "out", awq, TOKENS, progress=False).report
    assert all(w.tokens == TOKENS.numel() for w in report.weights if w.format)
