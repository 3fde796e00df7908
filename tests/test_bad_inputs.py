"""Bad inputs, as a table: each is an error of ours that names the value, before any long work, or exit code 1."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tersor
from tersor import Task
from tersor.cli import app
from tersor.cli.failures import exit_code
from tersor.engines import ENGINES
from tersor.engines.options import check_options
from tersor.errors import CalibrationError, CaptureError, EngineError, SavedFolderError, TaskError
from tersor.measure.metric import metric_result
from tersor.pipeline.folder.prompt import check_prompt, check_tokens
from tersor.pipeline.graph.files import run_files

LANGUAGE = Path(__file__).parent / "data/v0.1/language/sparse"

X = torch.zeros(1, 2, 6, 6)
BATCH = (torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0)),)


def first(kinds, count=3):
    """All kinds; those beyond the first run with the slow tests."""
    return [pytest.param(kind, marks=[pytest.mark.slow] * (k >= count)) for k, kind in enumerate(kinds)]



def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()


def task(**changes) -> Task:
    given = {"name": "t", "model": net(), "example": (X,), "calibration": lambda: [BATCH], **changes}
    return Task(**given)


FIELDS = {
    "no name": ({"name": None}, "name is None"),
    "an empty name": ({"name": "  "}, "name is"),
    "a number for a name": ({"name": 3}, "name is 3"),
    "half a character": ({"name": "a\ud800"}, "half of a character"),
    "a number for a metric": ({"metric": 5}, "metric is 5"),
    "no metric": ({"metric": ""}, "metric is ''"),
    "maybe": ({"higher_is_better": "maybe"}, "higher_is_better is 'maybe': it must be True or False"),
    "1 for True": ({"higher_is_better": 1}, "must be True or False"),
    "a class": ({"model": nn.Linear}, r"must be a torch\.nn\.Module"),
    "NaN": ({"example": (X.fill_(0) + float("nan"),)}, "72 of 72 values are NaN or infinite"),
    "infinity": ({"example": {"x": X - float("inf")}}, "argument x: 72 of 72"),
    "NaN inside": ({"example": ([X, (X * float("nan"),)],)}, "argument 0: 72 of 72"),
    "complex NaN": ({"example": (torch.full((1, 2), complex(0, float("nan"))),)}, "2 of 2"),
    "no tensor": ({"example": (3, "a")}, "holds no tensor but int, str"),
    "an array": ({"example": (X.numpy(),)}, r"numpy array.*from_numpy"),
    "no row": ({"example": (torch.zeros(0, 2),)}, r"\(0, 2\), without a value"),
    "sparse": ({"example": (torch.eye(2).to_sparse(),)}, "to_dense"),
    "keys that are no names": ({"example": {0: X}}, "the key 0"),
    "evaluate of nothing": ({"evaluate": lambda: 0.5}, r"evaluate must be a function of `predict`"),
    "evaluate of two": ({"evaluate": lambda predict, data: 0.5}, "takes other arguments"),
    "calibration of one": ({"calibration": lambda data: data}, "without arguments"),
    "no function for a loss": ({"loss": "mse"}, "loss must be a function"),
    "a list for train": ({"train": [BATCH]}, "train must be .*got list; .*is passed as `lambda: loader`"),
    "a loader for validation": ({"validation": DataLoader([1])}, "got DataLoader; .*is passed as `lambda: loader`"),
    "train of one": ({"train": lambda epoch: []}, "train must be a function"),
    "no function for a mask": ({"token_mask": torch.ones(1)}, "token_mask must be a function"),
    "a number for sizes": ({"dynamic": 5}, "dynamic is 5"),
    "a list for sizes": ({"dynamic": ["x"]}, "dynamic is"),
    "a size without a name": ({"dynamic": {"x": {2: None}}}, "calls a size None"),
    "the batch as a size": ({"dynamic": {"x": {0: "n"}}}, "dimension 0, the batch, varies anyway"),
    "no samples": ({"max_samples": 0}, "max_samples is 0: it must be at least 1"),
    "half a sample": ({"max_samples": 2.5}, "max_samples is 2.5"),
    "a yes for samples": ({"max_samples": True}, "max_samples is True"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_of_a_task(kind):
    changes, said = FIELDS[kind]
    with pytest.raises(TaskError, match=said):
        task(**changes)


def raises(error):
    yield BATCH
    raise error


def endless():
    return ((torch.rand(512, 2, 6, 6),) for _ in itertools.count())


CALIBRATION = {
    "None": (lambda: None, "returned NoneType: return an iterable"),
    "a number": (lambda: 7, "returned int"),
    "one tensor": (lambda: BATCH[0], r"batch 0, argument 0: shape \(2, 6, 6\) has 3 dimensions"),
    "a text": (lambda: "data", "returned a str"),
    "a dict": (lambda: {"x": BATCH}, "returned a dict"),
    "it raises": (lambda: 1 / 0, r"calibration\(\) raised ZeroDivisionError.*test_bad_inputs.py, line \d+: .*1 / 0"),
    "it ends the program": (lambda: sys.exit(0), r"calibration\(\) called sys\.exit\(0\)"),
    "its second batch raises": (lambda: raises(ValueError("disk")), "calibration batch 1 raised ValueError: disk"),
    "its second batch ends the program": (lambda: raises(SystemExit(0)), r"calibration batch 1 called sys\.exit"),
    "too little memory": (lambda: raises(MemoryError()), "calibration batch 1 raised MemoryError"),
    "nothing": (lambda: [], "yielded no batch"),
    "no row": (lambda: [BATCH, (torch.zeros(0, 2, 6, 6),)], r"batch 1, argument 0: shape \(0, 2, 6, 6\), without"),
    "sparse": (lambda: [(BATCH[0].to_sparse(),)], "to_dense"),
    "no end": (endless, r"more than 4096 samples, and does not tell its length.*islice.*max_samples"),
}


@pytest.mark.parametrize("kind", CALIBRATION)
def test_calibration_data(kind):
    calibration, said = CALIBRATION[kind]
    with pytest.raises(CalibrationError, match=said):
        list(task(calibration=calibration).calibration_batches())


ONE_PASS = {
    "generator": lambda: (BATCH for _ in range(3)),
    "map": lambda: map(tuple, [BATCH] * 3),
    "iterator": lambda: iter([BATCH] * 3),
    "zip": lambda: zip([BATCH[0]] * 3),
}


@pytest.mark.parametrize("kind", ONE_PASS)
def test_one_iterator_is_not_read_twice_even_if_something_is_left(kind):
    data = ONE_PASS[kind]()
    given = task(calibration=lambda: data)
    next(given.calibration_batches())
    with pytest.raises(CalibrationError, match=f"the same {type(data).__name__} again, which was read before"):
        next(given.calibration_batches())
    fresh = task(calibration=ONE_PASS[kind])
    assert [fresh.samples() for _ in range(3)] == [12] * 3


def test_a_bound_of_samples_is_the_tasks():
    given = task(calibration=lambda: [BATCH] * 3, max_samples=8)
    with pytest.raises(CalibrationError, match=r"more than 8 samples\. Take fewer"):
        given.samples()
    assert task(calibration=lambda: [BATCH] * 3, max_samples=12).samples() == 12
    assert task(calibration=lambda: (BATCH for _ in range(2)), max_samples=8).samples() == 8
    many = [(torch.zeros(3000, 2, 6, 6),)] * 2
    assert task(calibration=lambda: many).samples() == 6000


ANSWERS = {
    "nothing": (None, "NoneType"),
    "complex": (0.5 + 1j, "complex"),
    "complex scores": (torch.ones(3, dtype=torch.complex64), "complex"),
    "a bool": (True, "True"),
    "NaN": (float("nan"), "nan"),
    "a score of NaN": ([1.0, float("nan")], "nan for sample 1"),
    "a table": ([[1.0], [2.0]], r"shape \[2, 1\]"),
    "none": ([], r"shape \[0\]"),
    "texts": (["a", "b"], "list"),
    "a dict": ({"accuracy": 1.0}, "dict"),
    "too large": (10**400, "int|inf"),
    "a generator": ((x for x in [1.0]), "generator"),
}


@pytest.mark.parametrize("kind", first(ANSWERS))
def test_answers_of_evaluate(kind):
    answer, said = ANSWERS[kind]
    with pytest.raises(TaskError, match=f"evaluate of the model returned .*({said})"):
        metric_result(answer)


def zeroes(model):
    def evaluate(predict):
        for parameter in model.parameters():
            parameter.data.zero_()
        return 0.5

    return evaluate


def trains(model):
    return lambda predict: float(model.train().training)


def ends(model):
    return lambda predict: sys.exit(0)


def other_lengths(model):
    counts = iter((3, 4, 5))
    return lambda predict: [1.0] * next(counts)


EVALUATIONS = {
    "zeroes": (zeroes, "evaluate changed the model's 0.weight and 3 more"),
    "trains": (trains, "evaluate changed the model's .*mode"),
    "ends": (ends, r"evaluate of the original network called sys\.exit\(0\)"),
    "other lengths": (other_lengths, "evaluate returned 3 scores of original, and 4 scores of compressed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVALUATIONS)
def test_evaluations(kind):
    make, said = EVALUATIONS[kind]
    model = net()
    with pytest.raises(TaskError, match=said):
        tersor.compress(task(model=model, evaluate=make(model)), "int8-static", "torch", progress=False)


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layer, self.value = nn.Linear(6, 2), value

    def forward(self, x):
        self.layer(x)
        return self.value


class Ends(nn.Module):
    def forward(self, x):
        sys.exit(0)


MODELS = {
    "a text": (lambda: Returns("cat"), "returns 'cat' for Task.example, a str without a tensor"),
    "nothing": (lambda: Returns(None), "a NoneType without a tensor"),
    "a dict of numbers": (lambda: Returns({"score": 1.5}), "a dict without a tensor"),
    "an end": (Ends, r"calls sys\.exit\(0\) in forward"),
    "no weights": (nn.ReLU, "holds no weights"),
    "no weights in parts": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Softmax(1)), "holds no weights"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models(kind):
    make, said = MODELS[kind]
    with pytest.raises((CaptureError, TaskError), match=said):
        tersor.compress(task(model=make().eval()), engine="torch", report=False, progress=False)


THREADS = (0, -1, 2.5, "2", True, 99_999, 1_000_000, float("nan"), [1])
PRECISIONS = ("f16", "bf17", None, "f32 ", "", "F32", 32, ["f32"])


@pytest.mark.parametrize("engine", [None, *ENGINES])
def test_options_are_checked_alike(engine):
    found = None if engine is None else ENGINES[engine]
    for threads in THREADS:
        with pytest.raises(EngineError, match=r"threads is .*: it must be from 1 to \d+, a whole number"):
            check_options(found, threads, "f32")
    for precision in PRECISIONS:
        with pytest.raises(EngineError, match=r"computes float operators in FP32.*: choose the precision f32"):
            check_options(found, 1, precision)
    check_options(found, 1, "f32")


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": "2"}, {"precision": "f16"}, {"precision": None}])
def test_options_are_checked_before_any_work(options, tmp_path):
    def never():
        raise AssertionError("no data is read")

    for engine in ("openvino", "onnxruntime", "torch", "auto"):
        with pytest.raises(EngineError, match=r"threads is|computes float"):
            tersor.compress(task(calibration=never), engine=engine, **options)
        with pytest.raises(EngineError, match=r"threads is|computes float"):
            tersor.prepare(net(), example=(X,), engine=engine, **options)
    if "threads" in options:
        with pytest.raises(EngineError, match="threads is"):
            tersor.load(tmp_path, **options)


@cache
def compressed(engine):
    return tersor.compress(task(), "int8-static", engine, report=False, progress=False)


INPUTS = {
    "none": ((), "0 inputs were given, but the network takes 1: input"),
    "too many": ((X, X), "2 inputs were given, but the network takes 1"),
    "float64": ((X.double(),), "the input input is torch.float64, the network takes float32: convert it"),
    "an array of float64": ((X.double().numpy(),), "torch.float64, the network takes float32"),
    "integers": ((X.int(),), "torch.int32, the network takes float32"),
    "wrong channels": ((torch.zeros(1, 3, 6, 6),), "has the size 3 in dimension 1, the network takes 2"),
    "too flat": ((torch.zeros(2, 6, 6),), r"has 3 dimensions, the network takes 4.*x.unsqueeze\(0\)"),
    "no row": ((torch.zeros(0, 2, 6, 6),), "has the size 0 in dimension 0: give at least one"),
    "a list": (([[1.0]],), r"is \[\[1.0\]\], a list: give a tensor or an array"),
    "nothing": ((None,), "is None, a NoneType"),
    "objects": ((np.array([object()]),), "an array of object, which PyTorch has not"),
    "on no device": ((X.to("meta"),), "on meta"),
}


@pytest.mark.parametrize("engine", ["torch"])
@pytest.mark.parametrize("kind", INPUTS)
def test_inputs(engine, kind):
    inputs, said = INPUTS[kind]
    with pytest.raises(EngineError, match=said):
        compressed(engine).runner(*inputs)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_are_refused_in_the_same_words(engine, kind):
    said = []
    for name in ("torch", engine):
        with pytest.raises(EngineError) as caught:
            compressed(name).runner(*INPUTS[kind][0])
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "engine", ["torch", *(pytest.param(e, marks=pytest.mark.slow) for e in ("openvino", "onnxruntime", "tensorrt"))]
)
def test_arrays_are_taken_however_they_lie_in_memory(engine):
    done, x = compressed(engine), BATCH[0]
    wanted = done.runner(x)
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    for array in (x.numpy(), frozen, x.numpy().astype(">f4"), x.numpy()[::-1][::-1], np.asfortranarray(x.numpy())):
        assert torch.equal(done.runner(array), wanted)
        assert torch.equal(done(array), wanted)


def test_named_inputs_of_a_folder_without_a_signature():
    from dataclasses import replace

    done = compressed("torch")
    old = replace(done.deployed, signature=None)
    assert torch.equal(old(input=BATCH[0]), done(BATCH[0]))
    with pytest.raises(TaskError, match="the argument image is none that is left of the inputs input"):
        old(image=BATCH[0])


def _npz(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(1))


def _cut(path):
    np.save(path, X.numpy())
    path.write_bytes(path.read_bytes()[:-5])


def _pickled(path):
    np.save(path, np.array([object()]), allow_pickle=True)


ARRAYS = {
    "several arrays": _npz,
    "cut short": _cut,
    "objects": _pickled,
    "no header": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((("),
    "a header that is no dict": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x06\x00[1, 2]"),
    "a text": lambda path: path.write_text("1, 2, 3"),
    "nothing": lambda path: path.write_bytes(b""),
    "a folder": lambda path: path.mkdir(),
    "nowhere": lambda path: None,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_files_of_arrays(kind, tmp_path):
    ARRAYS[kind](tmp_path / "x.npy")
    with pytest.raises(TaskError, match=r"x\.npy.*numpy\.save"):
        run_files(compressed("torch"), [tmp_path / "x.npy"], tmp_path / "y.npy")
    assert not (tmp_path / "y.npy").exists()


def test_values_that_are_not_finite_are_refused_on_request(tmp_path):
    x = BATCH[0].clone()
    x[0, 0, :2, 0] = float("nan")
    np.save(tmp_path / "x.npy", x.numpy())
    run_files(compressed("torch"), [tmp_path / "x.npy"], tmp_path / "y.npy")
    with pytest.raises(EngineError, match="the input input holds NaN or infinity in 2 of 288 values"):
        run_files(compressed("torch"), [tmp_path / "x.npy"], tmp_path / "y.npy", finite=True)


@pytest.mark.parametrize("given", [None, 3, "", "a\0b", b"x", ["x"], "\ud800"])
def test_what_is_no_path(given, tmp_path):
    with pytest.raises(SavedFolderError):
        tersor.load(given)
    with pytest.raises(SavedFolderError):
        compressed("torch").save(given)
    with pytest.raises(tersor.TersorError):
        tersor.compress_folder(given, tmp_path / "out")
    with pytest.raises(SavedFolderError):
        tersor.compress_folder(tmp_path, given)


TASK_FILES = {
    "a syntax error": ("def task(:\n", r"SyntaxError: .*task\.py, line 1: def task\(:"),
    "a missing import": ("import math\nimport nowhere\n", r"ModuleNotFoundError: .*'nowhere' .*line 2: import nowhere"),
    "an error": ("raise RuntimeError('no\\ndata')\n", r"RuntimeError: no data \(task.py, line 1: raise Runtime"),
    "an end": ("import sys\nsys.exit(0)\n", r"called sys\.exit\(0\) \(task.py, line 2: sys\.exit\(0\)\)"),
    "no error of Python": ("import os\nraise SystemExit('bye')\n", r"called sys\.exit\('bye'\)"),
    "a number": ("task = 5\n", r"a int and no function task\(\)"),
    "no function": ("x = 1\n", r"no function task\(\)"),
    "an argument": ("def task(a):\n    return a\n", r"task\(\) of .* must take no arguments"),
    "async": ("async def task():\n    return 1\n", "is async"),
    "it raises": ("def task():\n    return {}['x']\n", r"raised KeyError: 'x' \(task.py, line 2: return \{\}\['x'\]\)"),
    "it ends": ("def task():\n    raise SystemExit(0)\n", r"task\(\) of .* called sys\.exit\(0\)"),
    "it never ends": ("def task():\n    return task()\n", "RecursionError"),
    "it returns None": ("def task():\n    pass\n", "returned a NoneType, not a tersor.Task"),
    "NUL": ("x = 1\0\n", "null bytes"),
    "no UTF-8": (b"x = '\xff'\n", "SyntaxError"),
    "a bad Task": ("import tersor\ndef task():\n    return tersor.Task(1, 2, 3, 4)\n", "Task.name is 1"),
}


@pytest.mark.parametrize("kind", TASK_FILES)
def test_task_files(kind, tmp_path, capsys):
    text, said = TASK_FILES[kind]
    (tmp_path / "task.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    words = ["inspect", str(tmp_path / "task.py")]
    assert exit_code(lambda: app(words), debug=False) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.startswith("error: TaskError: ")
    assert re.search(said, printed), printed


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("a\nb"), 1, "error: ValueError: a b; Tersor did not expect this"),
        (MemoryError(), 1, "error: MemoryError: no message; there is not enough memory"),
        (RecursionError("deep"), 1, "error: RecursionError: deep; a file or a value is nested too deeply"),
        (OSError(5, "Input/output error", "x"), 1, "error: OSError: [Errno 5] Input/output error: 'x'"),
        (ImportError("no jinja2"), 1, "error: ImportError: no jinja2; install what is missing"),
        (ValueError("\ud800"), 1, "error: ValueError: \\ud800"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (TaskError("ours"), 1, "error: TaskError: ours"),
        (SystemExit(2), 2, ""),
        (SystemExit("bye"), 1, ""),
        (SystemExit(), 0, ""),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_whatever_is_left_is_one_line(error, code, said, debug, capsys):
    def fails():
        raise error

    assert exit_code(fails, debug) == code
    printed = capsys.readouterr().err
    assert ("Traceback" in printed) == (debug and code == 1 and not isinstance(error, SystemExit))
    if not debug:
        assert printed.startswith(said)
        assert printed.count("\n") <= 1


FOLDER_CALLS = {
    "no samples": ({"samples": 0}, "--samples is 0"),
    "half a sample": ({"samples": 2.5}, "--samples is 2.5"),
    "a text for samples": ({"samples": "8"}, "--samples is '8'"),
    "one token": ({"length": 1}, "--length is 1: it must be at least 2"),
    "half a token": ({"length": 2.5}, "--length is 2.5"),
    "no layout": ({"layout": None}, "no layout None"),
    "a number for a text": ({"data": 5}, r"data \(--data\) is 5, a int"),
    "bytes for a text": ({"data": b"text"}, r"data \(--data\) is b'text'"),
    "a number to judge on": ({"evaluate": 5}, r"evaluate \(--valid\) is 5, a int"),
    "a number for a mask": ({"token_mask": 5}, "`token_mask` is a int"),
    "maybe": ({"force": "maybe"}, "force is 'maybe'"),
    "deep records": ({"data": "deep.jsonl"}, r"deep\.jsonl, line 2: nested too deeply"),
    "a deep list": ({"data": "deep.json"}, r"deep\.json, line 1: nested too deeply"),
}


@pytest.mark.parametrize("kind", first(FOLDER_CALLS))
def test_calls_with_a_folder(kind, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.jsonl").write_text('{"text": "a"}\n' + "[" * 100_000)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    options, said = FOLDER_CALLS[kind]
    with pytest.raises(tersor.TersorError, match=said):
        tersor.compress_folder(LANGUAGE, "out", "int8-weight", **options, progress=False)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


CONTINUED = {
    "past its positions": ((torch.ones(1, 30, dtype=torch.int64), 3), "a prompt of 30 tokens and 3 more are 33"),
    "none more": ((torch.ones(1, 4, dtype=torch.int64), 0), "max_new_tokens is 0"),
    "half a token": ((torch.ones(1, 4, dtype=torch.int64), 2.5), "max_new_tokens is 2.5"),
    "unknown tokens": ((torch.tensor([[1, 32]]), 1), "tokens from 1 to 32, but the model knows 32"),
    "negative tokens": ((torch.tensor([[1, -1]]), 1), "tokens from -1 to 1"),
    "numbers": ((torch.ones(1, 4), 1), r"not torch\.float32 \[1, 4\]"),
    "a row": ((torch.ones(4, dtype=torch.int64), 1), r"not torch\.int64 \[4\]"),
    "none": ((torch.ones(1, 0, dtype=torch.int64), 1), r"not torch\.int64 \[1, 0\]"),
    "a list": (([[1, 2]], 1), "not list"),
}


@pytest.mark.parametrize("kind", CONTINUED)
def test_what_is_continued(kind):
    given, said = CONTINUED[kind]
    with pytest.raises(TaskError, match=said):
        check_tokens(LANGUAGE, *given)


@pytest.mark.slow
def test_a_language_model_is_not_asked_for_more_than_it_has():
    pytest.importorskip("transformers")
    model = tersor.load(LANGUAGE)
    tokens = torch.ones(1, 30, dtype=torch.int64)
    assert model.generate(tokens, max_new_tokens=2, do_sample=False).shape == (1, 32)
    with pytest.raises(TaskError, match="a prompt of 30 tokens"):
        model.generate(input_ids=tokens, max_new_tokens=3)


@pytest.mark.parametrize(("prompt", "said"), [("", "empty"), ("a\ud83d", "half of a character")])
def test_prompts(prompt, said):
    with pytest.raises(TaskError, match=said):
        check_prompt(prompt)


COMMANDS = {
    "compress into the working folder": ("compress task.py -o . --force", "is or holds the task"),
    "compress into the root": ("compress task.py -o / --force", "is or holds the task"),
    "compress into a project": ("compress task.py -o project --force", "is not replaced, also with --force"),
    "compress under a file": ("compress task.py -o task.py/out", "Not a directory"),
    "compress into a long name": (f"compress task.py -o {'n' * 300}", "too long: 300 bytes"),
    "compress into processes": ("compress task.py -o /proc/out", "devices and processes"),
    "compress a model into itself": ("compress model -o model --force", "is or holds the model"),
    "compress a model into its folder": ("compress model -o model/small", "lies in the folder of the model"),
    "the example into a project": ("demo -o project", "is not replaced"),
    "run into a folder": ("run saved -i x.npy -o project", "is a folder"),
    "run into a device": ("run saved -i x.npy -o /dev/null", "is a device"),
    "run into its input": ("run saved -i x.npy -o x.npy", "one of the files that are read"),
    "run into a saved file": ("run saved -i x.npy -o saved/network.json", "no .npy file"),
    "run into a task": ("run saved -i x.npy -o task.py", "no .npy file"),
    "run with many threads": ("run saved -i x.npy -o y.npy --threads 99999", "threads is 99999"),
    "compare into a folder": ("compare saved saved --html project", "is a folder"),
    "compare into a link": ("compare saved saved --html link.html", "is a symbolic link"),
    "outliers into a task": ("outliers task.py -o task.py", "Not a directory"),
    "outliers into processes": ("outliers task.py -o /proc/self/page.html", "devices and processes"),
    "export over another file": ("export model -o task.py --force", "no .gguf file"),
    "export over its source": ("export model -o model/config.json --force", "one of the files that are read"),
    "a file that is no folder": ("report task.py", "task.py"),
}


@pytest.mark.parametrize("kind", first(COMMANDS))
def test_commands_that_would_write_where_they_may_not(kind, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    words, said = COMMANDS[kind]
    shutil.copytree(LANGUAGE.parents[1] / "networks/torch-int8-static", tmp_path / "saved")
    shutil.copytree(LANGUAGE, tmp_path / "model")
    (tmp_path / "project/.git").mkdir(parents=True)
    (tmp_path / "link.html").symlink_to("page.html")
    for name in ("task.py", "project/task.py"):
        (tmp_path / name).write_text("raise AssertionError('nothing is read')\n")
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")}
    assert exit_code(lambda: app(words.split()), debug=False) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words", "code", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)\n", (), 130, ""),
        ("import sys\nsys.exit(0)\n", (), 1, "called sys.exit(0)"),
        ("def task():\n    return 1 / 0\n", ("--debug",), 1, "Traceback"),
        ("", ("--no-such-option",), 2, "No such option"),
    ],
)
def test_exit_codes_of_the_program(text, words, code, said, tmp_path):
    (tmp_path / "task.py").write_text(text)
    command = [sys.executable, "-m", "tersor.cli", "inspect", "task.py", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(tersor.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
