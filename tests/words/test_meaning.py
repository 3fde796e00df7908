"""What is printed in Chinese holds no English sentence: names, formats and commands stay as they are."""

import re
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from sample_report import latency, layers, resnet20
from typer.main import get_command
from typer.testing import CliRunner

from tersor.cli import app, load_task
from tersor.cli.failures import exit_code
from tersor.cli.options import VALUES
from tersor.measure.language import LanguageReport, WeightRecord
from tersor.measure.perplexity import TextScore
from tersor.measure.schema import Environment
from tersor.measure.windows import TextProtocol
from tersor.network.sites import Plan, PlannedLayer
from tersor.report.html import html
from tersor.report.language import print_language_report
from tersor.report.tables.plan import plan_table
from tersor.report.text import text
from tersor.words import speaking

# Names of products, formats and units, and what the sample itself calls its parts.
NAMES = set(
    """python pytorch eager hugging face json yaml numpy gguf llama onnx runtime openvino tensorrt tersor nvidia qdq
    resnet cifar top accuracy linear conv add relu max pool avg fused int fp bf sqnr db cpu cpus amx vnni avx p rtn
    intel amd xeon r processor gptq admm mse kl mb kb gb ms s x j nats token tokens shell glob transformer hessian
    tmpdir columns any lang lc all messages zh cn utf en ohm omp num threads no color nan blocks options command args
    path str bool int range file default task recipes show""".split()
) | set(re.findall("[a-z]+", " ".join(VALUES.values()).lower()))


def english(shown: str) -> list[str]:
    """Runs of two and more English words, without names and without code in backticks."""
    plain = re.sub(r"`[^`]*`|\S*[./_=]\S*|--[\w-]+", " · ", shown.replace("│", " "))
    runs = re.findall(r"[A-Za-z][A-Za-z'’]*(?:[ ,;]+[A-Za-z][A-Za-z'’]*)+", plain)
    left = [[w for w in re.split(r"[ ,;]+", run) if w.lower() not in NAMES] for run in runs]
    return [" ".join(words) for words in left if len(words) > 1]


def misplaced(shown: str) -> list[str]:
    """English punctuation beside Chinese words, and spaces after Chinese punctuation."""
    return re.findall(r"\S*(?:[一-鿿）][,;:] |[,;:] (?=[一-鿿])|[，：；。] (?![ \[│]))\S+", shown)


def printed(draw) -> str:
    """What is drawn on a wide console while Chinese is spoken."""
    console = Console(width=300, color_system=None)
    with console.capture() as captured, speaking("zh"):
        draw(console)
    return captured.get()


def test_english_is_found():
    assert english("3 层 fell back to float") == ["fell back to float"]
    assert english("在 Hugging Face 文件夹中运行 `tersor compress here`") == []
    assert misplaced("用法： a 2 线程, b a; 线程 a，b; c") == ["用法： a", "线程, b", "a; 线程"]


FALLEN = [dict(x, executed="fp32", note="OpenVINO: Deconvolution in FP32, since its kernel is smaller than its stride; "
               "part of Subgraph s") if at in (3, 9) else x for at, x in enumerate(layers())]  # fmt: skip
NARROW = [dict(x, planned="fp32", note=None) if at in (3, 5) else x for at, x in enumerate(layers())]
CHECK = {"tolerance": 1.0, "steps": [
    {"name": "conv1", "ops": ["conv2d"], "verdict": "other", "largest": 3, "beyond": 0.2,
     "note": "the engine does not round relu inside it; without that rounding its numbers are as planned"},
    {"name": "x", "ops": ["add"], "verdict": "unchecked", "largest": 0, "beyond": 0,
     "note": "as an output it changes the engine's network"}]}  # fmt: skip
WORSE = {"compressed.metric": 0.9, "ratios.metric_drop": 0.017, "compressed.metric_interval": (0.012, 0.022)}
SLOW = {"ratios.speedup": 0.8, "ratios.speedup_spread": (0.75, 0.85)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**SLOW, "environment.isa": ["avx2"], "layers": NARROW, "one_step": CHECK},
        {**SLOW, "layers": FALLEN, **WORSE, "warnings": [
            "only 8 calibration samples: 100 to 1,000 are usual, give more",
            "original.memory_bytes: unknown, because it could not be measured (x)",
            "the speed-up varied from 0.60x to 2.00x over the rounds, as on a busy machine: measure again on an idle "
            "one; load average 9.1 on 2 processors",
        ]},
        {**WORSE, "compressed.metric_simulated": 0.916, "ratios.compression": 0.9},
        {**WORSE, "compressed.metric_simulated": 0.9, "calibration": {"adequate": False, "notes": []}},
        {"original.latency_ms": dict(latency(0.02, 1)), **SLOW},
        {"ratios.speedup": 1.2, "ratios.speedup_spread": (0.6, 2.0), "engine": "openvino"},
    ],
    ids=["good", "slow", "fallen", "large", "few", "tiny", "busy"],
)  # fmt: skip
def test_the_report(changes):
    report = resnet20(**{"warnings": [], **changes})
    with speaking("zh"):
        said = text(report, width=300)
    assert english(said) == misplaced(said) == []
    assert re.search("[一-鿿]", said.splitlines()[0])


@pytest.mark.parametrize(("language", "first"), [("en", "3.3x smaller,"), ("zh", "体积缩小 3.3x，")])
def test_the_headline_of_the_page_breaks_between_clauses(language, first):
    with speaking(language):
        title = re.search("<h1>(.*?)</h1>", html(resnet20()))[1]
    parts = re.findall('<span class="part">(.*?)</span>', title)
    assert (len(parts), parts[0]) == (3, first)


def test_an_error(capsys):
    with speaking("zh"):
        exit_code(lambda: load_task(Path("nowhere.py")), debug=False)
    assert capsys.readouterr().err.startswith("错误：TaskError: ")


def test_the_plan():
    notes = ("captured with use_cache=False: it returns no key-value cache",)
    reasons = (
        "weight of linear, stored in int8; arithmetic stays float; fewer than the 128 inputs that openvino quantizes "
        "together",
        "its output stays float (mask would be lost in the rounding of what it is added to (3 dB)), and openvino "
        "computes integer matmul to codes only",
        "kept by the rule (layer: head, `keep: fp16`): stored in fp16, computed in float",
        "not unrolled: its 900 steps are too many to unroll; at most 64 are supported",
    )
    rows = tuple(PlannedLayer(f"l{k}", f"l{k}", "linear", "fp32", reason) for k, reason in enumerate(reasons))
    said = printed(lambda to: to.print(plan_table(Plan((), rows), 10, 5, notes)))
    assert english(said) == misplaced(said) == []


def test_the_report_of_a_language_model():
    protocol = TextProtocol(length=8, stride=7, bos=True, windows=3, tokens=21, tokenizer="a" * 16, data="b" * 16)
    score = TextScore(nats=1.0, standard_error=None, protocol=protocol)
    left = {"format": None, "note": "stays float: it decides between the tokens; a rule with `weights` of its own "
            "quantizes it"}  # fmt: skip
    row = {"name": "w", "shape": (4, 4), "format": "int4", "method": "gptq", "bytes": 8, "error": 0.1, "rtn_error": 0.2}
    found = LanguageReport(
        model="tiny", architecture="Llama", recipe="r", layout="awq", seed=0, calibration=str(protocol),
        environment=Environment(cpu=None, isa=(), threads=1, precision="f32", versions={}), original_bytes=4000,
        compressed_bytes=1000, bits_per_weight=4.5, original=score, compressed=score, timings_s={}, peak_bytes=1,
        weights=tuple(WeightRecord(**row) for row in (row, row | {"name": "head"} | left)),
        warnings=("2 layers do not divide by the group (a: 7 inputs by 4); their last group is shorter",),
    )  # fmt: skip
    said = printed(lambda to: print_language_report(found, to))
    assert english(said) == misplaced(said) == []


COMMANDS = [[], *([name] for name in get_command(app).commands), ["recipes", "show"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_every_command(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    said = CliRunner().invoke(app, [*words, "--help", "--lang", "zh"])
    assert said.exit_code == 0
    assert english(said.output) == misplaced(said.output) == []
    assert "用法：" in said.output


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_in_a_narrow_terminal(words, monkeypatch):
    def names(width):
        monkeypatch.setenv("COLUMNS", width)
        said = CliRunner().invoke(app, [*words, "--help", "--lang", "zh"]).output
        assert "…" not in said
        return Counter(re.findall(r"\b(?:q4_k|gptq|awq|arm-dotprod|outliers\.html)\b", said))

    assert names("80") == names("300")
