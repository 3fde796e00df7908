"""No public call leaves a trace in the process or in the caller's model, whether it returns or raises.

Python's random state is looked at in fresh processes alone: here beartype draws from it.
"""

import inspect
import logging
import os
import random
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torch.nn.modules import module as modules
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.errors import TersorError
from tersor.network.blocks.chain import parameters_on_meta
from tersor.numerics import QuantSpec
from tersor.process import importing, logging_at, quiet
from tests.checkpoints.tiny_llama import quantized, tiny_llama, write_folder

SHAPE = (3, 8, 8)
TASK = """
import torch, tersor
from torch import nn

def task():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    data = lambda: [(torch.ones(8, 3, 8, 8),)]
    score = lambda predict: float(predict(torch.ones(8, 3, 8, 8)).sum())
    return tersor.Task("tiny", net, (torch.zeros(1, 3, 8, 8),), data, score, train=data)
"""
TASK = TASK.replace("net =", "with torch.random.fork_rng(devices=[]):\n        net =")


def process():
    """All of the process that a caller might miss."""
    loggers = {n: one for n, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)}
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(np.random.get_state()),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "backends": [
            cuda.matmul.allow_tf32, cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
            cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, mkldnn.enabled,
        ],
        "warning filters": list(warnings.filters),
        "warnings' printer": warnings.showwarning,
        "log levels": {n: one.level for n, one in loggers.items()} | {"": logging.root.level},
        "disabled logs": [logging.root.manager.disable, *(n for n, one in loggers.items() if one.disabled)],
        "handlers of the root logger": list(logging.root.handlers),
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "path of modules": list(sys.path),
        "numpy's errors": np.geterr(),
        "printing": [np.get_printoptions(), vars(torch._tensor_str.PRINT_OPTS).copy()],
        "recursion limit": sys.getrecursionlimit(),
        "nn.Module": {n: getattr(nn.Module, n) for n in ("register_parameter", "__setattr__", "__call__", "to")},
        "global hooks": [len(v) for n, v in vars(modules).items() if n.startswith("_global") and hasattr(v, "items")],
    }  # fmt: skip


def of_model(model):
    """All of the caller's model."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    hooks = [n for n in vars(model) if "hooks" in n]
    return {
        "values": {n: (id(t), t.detach().clone().numpy().tobytes(), t.dtype) for n, t in tensors.items()},
        "requires_grad": {n: t.requires_grad for n, t in tensors.items()},
        "gradients": {n: t.grad for n, t in tensors.items()},
        "modules": {n: (id(m), type(m), m.training) for n, m in model.named_modules()},
        "hooks": {n: [len(getattr(m, h)) for h in hooks] for n, m in model.named_modules()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
    }


@contextmanager
def nothing_changes(*models):
    """Fail, with its name, where anything is another after the block."""
    before = [process(), *map(of_model, models)]
    try:
        yield
    finally:
        after = [process(), *map(of_model, models)]
        for old, new in zip(before, after, strict=True):
            old["log levels"] = {n: v for n, v in old.get("log levels", {}).items() if n in new.get("log levels", {})}
            new["log levels"] = {n: v for n, v in new.get("log levels", {}).items() if n in old["log levels"]}
            for name, value in old.items():
                assert new[name] == value, name


@pytest.fixture(autouse=True)
def unusual():
    """A process in which nothing is as it is at the start."""
    threads, level = torch.get_num_threads(), logging.root.level
    torch.manual_seed(123), np.random.seed(123)
    torch.set_num_threads(2)
    logging.root.setLevel(33)
    yield
    torch.set_num_threads(threads)
    logging.root.setLevel(level)


@pytest.fixture
def model():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(288, 4)
    made = nn.Sequential(*layers).eval()
    made[0].weight.requires_grad_(False)
    made[2].register_forward_hook(lambda module, inputs, output: None)
    return made


def task_of(model, evaluate=None):
    data = [(torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    evaluate = evaluate or (lambda predict: float(predict(*data[0]).sum()))
    return tersor.Task("t", model, (torch.zeros(1, *SHAPE),), lambda: data, evaluate)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A language model of two blocks, with a tokenizer."""
    path = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=48, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{k}": k for k in range(48)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    kinds = {"bos_token": "w1", "eos_token": "w2", "unk_token": "w3"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **kinds).save_pretrained(path)
    return path


OPTIONS = {"report": False, "progress": False}
ASKED = {"max_drop": 100, "engine": "torch", "narrower": False, "progress": False, "threads": 1}
TOKENS = torch.arange(3, 35).reshape(4, 8)


def compress(model, folder, tmp_path):
    for engine in ("torch", "openvino"):
        done = tersor.compress(task_of(model), engine=engine, threads=1, **OPTIONS)
        done(torch.zeros(2, *SHAPE))
        done.save(tmp_path / engine)
    smooth = tersor.Recipe(equalize="on", weights=tersor.Quantization(granularity="tensor", rounding="stochastic"))
    tersor.compress(task_of(model), smooth, "torch", **OPTIONS)
    tersor.compress(task_of(model), "int4-gptq", "torch", threads=1, progress=False)


def compress_folder(model, folder, tmp_path):
    tersor.compress_folder(folder, tmp_path / "small", "int4-gptq", TOKENS, evaluate=TOKENS, samples=4, length=8)


def load(model, folder, tmp_path):
    tersor.compress(task_of(model), engine="openvino", **OPTIONS).save(tmp_path / "out")
    tersor.load(tmp_path / "out", threads=1)(torch.zeros(2, *SHAPE))
    tersor.load(folder, threads=1).generate(TOKENS[:1], max_new_tokens=2)


def convert(model, folder, tmp_path):
    recording = tersor.prepare(model, example=(torch.zeros(1, *SHAPE),), engine="torch")
    recording(torch.ones(8, *SHAPE))
    tersor.convert(recording, progress=False)


def training_task(model):
    return replace(task_of(model), train=lambda: [(torch.ones(8, *SHAPE),)])


def prepare_qat(model, folder, tmp_path):
    batches = [(torch.ones(8, *SHAPE),)]
    student = tersor.prepare_qat(model, "int8-qat", (torch.zeros(1, *SHAPE),), batches, engine="torch", progress=False)
    tersor.convert(student, progress=False)


def prune_iteratively(model, folder, tmp_path):
    data = [(torch.ones(8, *SHAPE),)]
    tersor.prune_iteratively(model, data, "50%", "exactobs")
    tersor.prune_iteratively(model, data, "50%", loss=lambda net, batch: net(*batch).square().mean(), steps=2)


def pruned(model):
    recipe = tersor.Recipe(steps=[{"prune": {"target": "30% channels", "score": "magnitude"}}, {"quantize": {}}])
    return tersor.compress(task_of(model), recipe, "torch", report=False, progress=False)


def merge_lora(model, folder, tmp_path):
    tersor.compress_folder(folder, tmp_path / "small", "int4-weight", evaluate=None, progress=False)
    tersor.merge_lora(tmp_path / "small", adapter_of(tmp_path / "small", tmp_path / "adapter"), tmp_path / "merged")


def adapter_of(folder, path):
    """An adapter of zeros for the folder's first linear layer, as PEFT writes it."""
    weights = load_file(next(folder.glob("*.safetensors")))
    name = next(n for n in weights if n.endswith("q_proj.weight_packed")).removesuffix(".weight_packed")
    out, width = (int(n) for n in weights[f"{name}.weight_shape"])
    path.mkdir()
    key = f"base_model.model.{name}.lora_"
    save_file({f"{key}A.weight": torch.zeros(2, width), f"{key}B.weight": torch.zeros(out, 2)},
              path / "adapter_model.safetensors")  # fmt: skip
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    return path


CALLS = {
    "compress": compress,
    "compress_folder": compress_folder,
    "convert": convert,
    "dynamic_plan": lambda model, *_: tersor.dynamic_plan(model),
    "finetune": lambda model, *_: tersor.finetune(training_task(model), engine="torch", **OPTIONS),
    "load": load,
    "merge_lora": merge_lora,
    "narrow": lambda model, *_: tersor.narrow(model, pruned(model)),
    "optimize": lambda model, *_: tersor.optimize(task_of(model), **ASKED),
    "outliers": lambda model, *_: tersor.outliers(task_of(model), 8),
    "prepare": lambda model, *_: tersor.prepare(model, example=(torch.zeros(1, *SHAPE),)),
    "prepare_qat": prepare_qat,
    "prune_iteratively": prune_iteratively,
    "quantize_dynamic": lambda model, *_: tersor.quantize_dynamic(model)(torch.zeros(2, *SHAPE)),
    "trainable": lambda model, *_: tersor.trainable(task_of(model), engine="torch", progress=False),
}


def wrong(*_):
    raise RuntimeError("the caller's own")


def prune_with_a_loss_that_raises(model, folder, tmp_path):
    tersor.prune_iteratively(model, [(torch.ones(8, *SHAPE),)], "50%", loss=wrong)


def prune_and_retrain_with_what_raises(model, folder, tmp_path):
    tersor.prune_iteratively(model, [(torch.ones(8, *SHAPE),)], "50%", retrain=wrong)


def batches_that_break_off():
    yield (torch.ones(8, *SHAPE),)
    raise RuntimeError("the caller's own")


def load_what_is_damaged(model, folder, tmp_path):
    tersor.compress(task_of(model), engine="torch", **OPTIONS).save(tmp_path / "out")
    (tmp_path / "out/network.safetensors").write_bytes(b"")
    tersor.load(tmp_path / "out")


def folder_of_nobody(model, folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "x"}')
    tersor.compress_folder(tmp_path, tmp_path / "small", "int8-weight")


def breaking_off(model):
    return tersor.Task("t", model, (torch.zeros(1, *SHAPE),), batches_that_break_off)


class Untraceable(nn.Module):
    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x.item()


RAISE = {
    "compress: evaluate": lambda m, *_: tersor.compress(task_of(m, wrong), engine="torch", threads=1, progress=False),
    "compress: calibration": lambda m, *_: tersor.compress(breaking_off(m), engine="torch", **OPTIONS),
    "compress: capture": lambda m, *_: tersor.compress(task_of(Untraceable().eval()), engine="torch", **OPTIONS),
    "compress: training": lambda m, *_: tersor.compress(task_of(nn.Sequential(m)), engine="torch", **OPTIONS),
    "compress_folder": folder_of_nobody,
    "compress_folder: data": lambda m, folder, path: tersor.compress_folder(folder, path / "small", "int4-gptq", "w4"),
    "convert": lambda m, *_: tersor.convert(tersor.prepare(m, example=(torch.zeros(1, *SHAPE),))),
    "dynamic_plan": lambda m, *_: tersor.dynamic_plan(m, tersor.Recipe(rules=[{"layer": "none", "keep": "fp32"}])),
    "finetune": lambda m, *_: tersor.finetune(replace(training_task(m), loss=wrong), engine="torch", **OPTIONS),
    "load": load_what_is_damaged,
    "merge_lora": lambda m, folder, path: tersor.merge_lora(folder, path, path / "merged"),
    "narrow": lambda m, folder, path: tersor.narrow(m, folder),
    "optimize": lambda m, *_: tersor.optimize(task_of(m, wrong), **ASKED),
    "outliers": lambda m, *_: tersor.outliers(breaking_off(m)),
    "prepare": lambda m, *_: tersor.prepare(m, example=(torch.zeros(1, 4),)),
    "prepare_qat": lambda m, *_: tersor.prepare_qat(m, example=(torch.zeros(1, 4),), progress=False),
    "prune_iteratively: loss": prune_with_a_loss_that_raises,
    "prune_iteratively: retrain": prune_and_retrain_with_what_raises,
    "quantize_dynamic": lambda m, *_: tersor.quantize_dynamic(m, "no-such-recipe"),
    "trainable": lambda m, *_: tersor.trainable(breaking_off(m), progress=False),
}


def test_every_public_function_is_called_here():
    public = {n for n in tersor.__all__ if inspect.isfunction(getattr(tersor, n))}
    assert public == set(CALLS) == {name.split(":")[0] for name in RAISE}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_no_trace(name, model, folder, tmp_path, quick_report):
    with nothing_changes(model):
        CALLS[name](model, folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RAISE)
def test_a_call_that_raises_leaves_no_trace(name, model, folder, tmp_path, quick_report):
    with nothing_changes(model), pytest.raises((TersorError, RuntimeError)):
        RAISE[name](model, folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "quantize_dynamic"])
def test_a_call_under_no_grad_leaves_no_trace(name, model, folder, tmp_path, quick_report):
    with torch.no_grad(), nothing_changes(model):
        CALLS[name](model, folder, tmp_path)


COMMANDS = {
    "inspect": "inspect {task}",
    "compress": "compress {task} -o {tmp}/out --threads 1",
    "finetune": "finetune {task} -o {tmp}/out -e torch --threads 1",
    "generate": "generate {folder} -p w5 --tokens 2 --threads 1",
    "export": "export {coded} -o {tmp}/x.gguf",
    "report": "report {made}",
    "compare": "compare {made} {copy}",
    "run": "run {made} --input {x} --output {tmp}/y.npy --threads 1",
    "calibrate": "calibrate {task}",
    "outliers": "outliers {task} --samples 8",
    "sensitivity": "sensitivity {task} --samples 8",
    "optimize": "optimize {task} --max-drop 100 -e torch --same-shape --threads 1 -o {tmp}/best",
    "engines": "engines",
    "demo": "demo -o {tmp}/demo -e torch",
}
WRONG_COMMANDS = {
    "inspect": "inspect {tmp}/none.py",
    "compress": "compress {task} -o {made}",
    "finetune": "finetune {task} -r int8-static -o {tmp}/out",
    "generate": "generate {tmp} -p w5 --threads 1",
    "export": "export {tmp} -o {tmp}/x.gguf",
    "report": "report {tmp}",
    "compare": "compare {tmp} {made}",
    "run": "run {made} --input {tmp}/none.npy --output {tmp}/y.npy --threads 1",
    "calibrate": "calibrate {task} -r none",
    "outliers": "outliers {tmp}/none.py",
    "sensitivity": "sensitivity {task} -r none",
    "optimize": "optimize {task} -o {tmp}/best",
    "engines": "engines more",
    "demo": "demo -o {tmp}/demo -e none",
}


@pytest.fixture
def words(folder, tmp_path, model, quick_report):
    """What stands in braces in the commands."""
    (tmp_path / "task.py").write_text(TASK)
    done = tersor.compress(task_of(model), engine="torch", threads=1, progress=False)
    done.save(tmp_path / "made")
    done.save(tmp_path / "copy")
    np.save(tmp_path / "x.npy", np.zeros((2, *SHAPE), np.float32))
    llama = tiny_llama()
    coded = quantized(llama, lambda name: QuantSpec("int4", "group:32"))
    write_folder(tmp_path / "coded", llama, coded, "compressed-tensors")
    names = {"task": "task.py", "made": "made", "copy": "copy", "coded": "coded", "x": "x.npy"}
    return {k: tmp_path / v for k, v in names.items()} | {"folder": folder, "tmp": tmp_path}


SLOW = ("demo", "finetune", "generate", "folder")


def slow(names):
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


def test_every_command_is_called_here():
    assert {c.name or c.callback.__name__ for c in app.registered_commands} == set(COMMANDS) == set(WRONG_COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow(COMMANDS))
def test_a_command_leaves_no_trace(name, words):
    with nothing_changes():
        done = CliRunner().invoke(app, COMMANDS[name].format(**words).split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG_COMMANDS)
def test_a_command_that_fails_leaves_no_trace(name, words):
    with nothing_changes():
        assert CliRunner().invoke(app, WRONG_COMMANDS[name].format(**words).split()).exit_code != 0


FRESH = """
import sys
sys.path[:0] = {paths}
import numpy, torch
import logging, os, random, warnings
def state():
    return [torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate(), torch.get_num_threads(),
            list(warnings.filters), dict(os.environ), logging.root.level, list(logging.root.handlers), numpy.geterr(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.nn.Module.register_parameter, os.getcwd()]
before = state()
import tersor
print([k for k, (a, b) in enumerate(zip(before, state(), strict=True)) if a != b])
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
before = state()
{call}
print([k for k, (a, b) in enumerate(zip(before, state(), strict=True)) if a != b])
"""
FIRST_CALLS = {
    "torch": 'tersor.prepare(net, example=(torch.zeros(1, 3, 8, 8),), engine="torch")',
    "pruning": "tersor.prune_iteratively(net, [(torch.ones(4, 3, 8, 8),)], method='exactobs')",
    "folder": "tersor.load({folder!r})",
    "correlation": "tersor.metrics.spearman(torch.arange(5.0), torch.arange(5.0))",
    "onnxruntime": """
task = tersor.Task('t', net, (torch.zeros(1, 3, 8, 8),), lambda: [(torch.ones(4, 3, 8, 8),)])
tersor.compress(task, engine="onnxruntime", threads=1, report=False, progress=False)""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow(FIRST_CALLS))
def test_importing_tersor_and_the_first_call_leave_no_trace(name, folder):
    """The first call imports what others have imported already in this process."""
    call = FIRST_CALLS[name].format(folder=str(folder)) if name == "folder" else FIRST_CALLS[name]
    code = FRESH.format(paths=[p for p in sys.path if p], call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]"]


# --- what makes it so ---


def both(first, second):
    """``first`` is entered before ``second``, and left before it."""
    inside, leave = threading.Event(), threading.Event()

    def other():
        with second():
            inside.set()
            leave.wait(10)

    with first():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
    leave.set()
    thread.join()


@pytest.mark.parametrize("first", [quiet, importing])
@pytest.mark.parametrize("second", [quiet, importing])
def test_threads_that_overlap_leave_the_filters_as_they_were(first, second):
    with nothing_changes():
        both(first, second)


def test_a_logger_keeps_its_level_whoever_leaves_first():
    logger = logging.getLogger("tersor.test")
    logger.setLevel(17)
    with nothing_changes():
        both(lambda: logging_at(40, "tersor.test"), lambda: logging_at(50, "tersor.test"))
    with logging_at(40, "tersor.test"):
        assert logger.level == 40
    assert logger.level == 17


def test_quiet_hides_warnings_and_what_is_imported_leaves_no_filter():
    with nothing_changes(), quiet():
        warnings.warn("hidden", stacklevel=1)
        warnings.simplefilter("always")
        os.environ["TORCHINDUCTOR_TEST"] = "1"
    with nothing_changes(), importing():
        random.random()
        warnings.simplefilter("always")
    with pytest.warns(UserWarning, match="seen"), importing():
        warnings.warn("seen", stacklevel=1)


def test_only_the_thread_that_builds_has_its_parameters_on_meta():
    found = {}

    def build():
        found["other"] = nn.Linear(2, 2)

    with nothing_changes():
        with parameters_on_meta():
            thread = threading.Thread(target=build)
            thread.start()
            thread.join()
            found["own"] = nn.BatchNorm1d(2)
            found["none"] = nn.Linear(2, 2, bias=False)
        assert found["other"].weight.device.type == "cpu"
        assert found["own"].weight.is_meta
        assert not found["own"].running_mean.is_meta
        assert found["none"].bias is None
        assert not nn.Linear(1, 1).weight.is_meta
        torch.manual_seed(123)
