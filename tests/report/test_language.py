"""The report of a language model: methods told once, what stays float grouped, the texts beside the figures."""

import io

from rich.console import Console

from tersor.measure.language import LanguageReport, WeightRecord
from tersor.measure.perplexity import TextScore
from tersor.measure.schema import Environment
from tersor.measure.windows import TextProtocol
from tersor.report.language import language_html, print_language_report

PROTOCOL = TextProtocol(
    length=8, stride=7, bos=True, windows=3, tokens=21, tokenizer="aaaaaaaaaaaaaaaa", data="bbbbbbbbbbbbbbbb"
)
GPTQ = "gptq mse, act-order, damping 0.01"


def weight(name, method, **more):
    return WeightRecord(**{"name": name, "shape": (4, 4), "format": "int4", "method": method, "bytes": 8} | more)


def report(*weights, **more):
    known = {
        "model": "tiny", "architecture": "Llama", "recipe": "r", "layout": "compressed-tensors", "seed": 0,
        "environment": Environment(cpu=None, isa=(), threads=1, precision="f32", versions={}),
        "calibration": "some text", "original_bytes": 4000, "compressed_bytes": 1000, "bits_per_weight": 4.5,
        "weights": weights, "timings_s": {}, "peak_bytes": 1,
    }  # fmt: skip
    return LanguageReport(**known | more)


def shown(found, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_language_report(found, console)
    return console.file.getvalue()


def test_a_method_is_spelled_out_once():
    names = [f"model.layers.{k}.mlp.down_proj" for k in range(5)]
    told = shown(report(*(weight(n, GPTQ, error=1e-3, rtn_error=2e-3) for n in names), weight("head", "rtn minmax")))
    assert told.count("act-order") == 1
    assert "gptq mse: act-order, damping 0.01" in told
    assert all(f"\n{name} " in told for name in names), "names are not cut into pieces"


def test_methods_that_begin_alike_are_told_apart_in_the_row():
    other = GPTQ.replace("0.01", "0.1")
    rows = shown(report(weight("a", GPTQ), weight("b", other)), 140).splitlines()
    assert next(r for r in rows if r.startswith("b ")).rstrip().endswith(other)


def test_weights_that_stay_float_for_one_reason_share_a_line():
    left = [weight(f"l{k}", "none", format=None, note="stays float: 172 inputs") for k in range(4)]
    assert "l0, l1 and 2 more: stays float: 172 inputs" in shown(report(*left))


def test_the_texts_are_named_and_a_missing_score_names_the_option():
    score = TextScore(nats=1.0, standard_error=None, protocol=PROTOCOL)
    measured = shown(report(weight("a", GPTQ), original=score, compressed=score), 200)
    assert "Calibrated on some text" in measured
    assert f"Evaluated on {PROTOCOL}" in measured
    assert "(pass --valid TEXT, or evaluate= in Python)" in report(weight("a", GPTQ)).headline()


def test_without_bits_the_size_stands_alone():
    sizes = shown(report(weight("a", "sparsegpt", format="2:4 zeros"), bits_per_weight=None))
    assert "kB;" not in sizes


def test_the_page_breaks_names_at_dots_and_escapes_them():
    page = language_html(report(weight("model.<b>.up", GPTQ)))
    assert "model.<wbr>&lt;b&gt;.<wbr>up" in page
    assert page.count("act-order") == 1
