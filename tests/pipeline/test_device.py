"""Folders compressed on an accelerator: the bytes of the CPU, nothing mixed, nothing left there."""

import pytest
import torch
from pretended import accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

import tersor
from tersor import solvers
from tersor.cli import app
from tersor.errors import EngineError
from tersor.pipeline.folder.job import fingerprint, prepare_job
from tersor.recipe import Quantization, Recipe, Rule
from tests.pipeline.tiny_folders import LM, MODELS, TOKENS, written

SMALL = LM | {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32}
HEAD = (Rule(layer="lm_head", weights={"format": "int8"}),)


def recipe(**options):
    """GPTQ by channels, in few rounds."""
    weights = Quantization(format="int4", granularity="channel", range="minmax", solver={"gptq": {"refine": 1}})
    return Recipe(
        name="test", weights=weights, activations=Quantization(format="fp32"), bias_correction=False, **options
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return written(tmp_path_factory.mktemp("device") / "source", MODELS["llama"](**SMALL))


@pytest.fixture(autouse=True)
def same_attention():
    """Devices choose different kernels of attention, whose sums differ in their order."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def asked(monkeypatch):
    """Where weights were solved."""
    devices = set()

    def ask(problem, choice):
        devices.add(problem.weight.device.type)
        return solvers.ask(problem, choice)

    monkeypatch.setattr("tersor.pipeline.folder.blockwise.ask", ask)
    return devices


def files(path):
    return {p.name: p.read_bytes() for p in path.glob("*") if p.suffix in (".safetensors", ".json", ".yaml")}


def compressed(source, out, made, **options):
    return tersor.compress_folder(
        source, out, made, TOKENS[:2], evaluate=TOKENS[4:5], progress=False, **options
    ).report


def same(source, tmp_path, made, **options):
    """Whether both devices give the same files and scores."""
    here = compressed(source, tmp_path / "here", made)
    with accelerator(**options) as device:
        there = compressed(source, tmp_path / "there", made, device=device)
    assert here.environment.device == "cpu"
    assert there.environment.device == "privateuseone"
    ours, theirs = files(tmp_path / "here"), files(tmp_path / "there")
    stored = {name for name in ours if name not in ("report.json", "manifest.json")}
    assert {name for name in stored if ours[name] != theirs[name]} == set()
    assert there.compressed.nats == pytest.approx(here.compressed.nats, rel=1e-6)


def test_an_accelerator_writes_what_the_cpu_writes(source, tmp_path, asked):
    same(source, tmp_path, recipe(rules=HEAD))
    assert asked == {"cpu", "privateuseone"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"awq": True}, {"rotate": True}], ids=str)
def test_rewritten_blocks_are_those_of_the_cpu(source, tmp_path, options):
    same(source, tmp_path, recipe(**options))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt_neo", "qwen2_moe", "mamba", "t5"])
def test_other_architectures_mix_no_devices(kind, tmp_path):
    path = written(tmp_path / "source", MODELS[kind]())
    made = recipe()
    tersor.compress_folder(path, tmp_path / "here", made, TOKENS[:4], progress=False)
    with accelerator() as device:
        tersor.compress_folder(path, tmp_path / "there", made, TOKENS[:4], progress=False, device=device)
    for name, data in files(tmp_path / "here").items():
        assert name in ("report.json", "manifest.json") or files(tmp_path / "there")[name] == data


@pytest.mark.slow
def test_without_float64_blocks_run_there_and_weights_are_solved_here(source, tmp_path, asked):
    same(source, tmp_path, recipe(), float64=False)
    assert asked == {"cpu"}


@pytest.mark.parametrize("option", ["awq", "rotate"])
def test_rewriting_without_float64_is_refused(source, tmp_path, option):
    with accelerator(float64=False) as device, pytest.raises(EngineError, match="privateuseone:0 does not have"):
        compressed(source, tmp_path / "out", recipe(**{option: True}), device=device)
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(EngineError, match="there is no device cuda:9 here: give one of cpu"):
        tersor.compress_folder(tmp_path / "nothing", tmp_path / "out", device="cuda:9")
    (tmp_path / "model").mkdir()
    words = ["compress", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--device", "cuda:9"]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, EngineError)
    assert "there is no device cuda:9" in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_resumed_on_another_device(source):
    with accelerator() as device:
        there = fingerprint(prepare_job(source, recipe(), TOKENS[:4], device=device))
    here = fingerprint(prepare_job(source, recipe(), TOKENS[:4]))
    assert {name for name in here if here[name] != there[name]} == {"device"}
    assert (here["device"], there["device"]) == ("cpu", "privateuseone")


def test_tokens_may_lie_on_the_accelerator(source):
    with accelerator() as device:
        job = prepare_job(source, recipe(), TOKENS[:4].to(device), device=device)
    assert torch.equal(job.calibration.ids, TOKENS[:4])
