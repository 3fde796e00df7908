"""The speed gate: what a report may say of zeros and of removed channels, and what zeros save."""

import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.engines import ENGINES
from tersor.engines.zeros import CONDITIONS, Weights, condition
from tersor.measure.gates import PIECE, channels_text, deflated, sentences, zeros_text
from tersor.measure.parts.gates import Pair, Zeros
from tersor.measure.schema import Report
from tersor.report.html import html
from tersor.report.text import text
from tests.sample_report import resnet20

ZEROS = Zeros(weights=1000, zeros=800, bytes=10**6, deflated=4 * 10**5, condition="the engine multiplies them")
RATIOS = st.floats(0.1, 10)


@given(RATIOS, RATIOS, RATIOS)
def test_faster_is_said_only_beyond_noise(value, one, other):
    spread = (min(one, other), max(one, other))
    surely = min(value, spread[0]) > 1
    zeros = zeros_text(ZEROS, Pair(without="zeros", speedup=value, spread=spread))
    channels = channels_text(Pair(without="channels", speedup=value, spread=spread))
    for words in (zeros, channels):
        said = "faster here" in words and "not faster here" not in words
        assert said == surely, words
        assert ("slower" in words) == (max(value, spread[1]) < 1), words


def test_without_a_pair_nothing_is_faster():
    assert zeros_text(ZEROS) == (
        "80 % of the weights are zeros: smaller when compressed (1.00 MB → 400 kB by deflate), not faster here: the "
        "engine multiplies them"
    )
    assert "(2:4)" in zeros_text(ZEROS.model_copy(update={"pattern": "2:4"}))
    # Codes of few bits without redundancy: deflate gains nothing.
    grown = ZEROS.model_copy(update={"deflated": 10**6 + 5})
    assert "not smaller when compressed" in zeros_text(grown)


def test_deflated_is_what_zlib_makes_of_the_pieces(tmp_path):
    content = torch.randint(0, 4, (3 * PIECE + 1000,), dtype=torch.uint8).numpy().tobytes()
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "empty"]
    for path, part in zip(paths, (content, content[:5000], b""), strict=True):
        path.write_bytes(part)
    expected = sum(
        len(zlib.compress(part[at : at + PIECE], 6))
        for part in (content, content[:5000])
        for at in range(0, len(part), PIECE)
    )
    assert deflated(paths) == (expected, False)
    # Two bits of entropy in a byte.
    assert 0.25 < expected / len(content) < 0.32
    assert deflated([paths[2]]) == (0, False)
    assert deflated([]) == (0, False)


def test_large_files_are_sampled_evenly(tmp_path):
    """Half of the file is zeros: a sample of its start alone would miss them."""
    path = tmp_path / "large"
    path.write_bytes(torch.randint(0, 256, (8 * PIECE,), dtype=torch.uint8).numpy().tobytes() + bytes(8 * PIECE))
    whole, estimated = deflated([path])
    some, sampled = deflated([path], limit=4 * PIECE)
    assert (estimated, sampled) == (False, True)
    assert some == pytest.approx(whole, rel=0.05)


def test_every_engine_has_a_condition_and_it_is_checked():
    assert ENGINES.keys() | {"xnnpack"} == CONDITIONS.keys()
    amx = ("avx2", "amx_int8")
    fits, ragged, conv = (128, 64), (128, 65), (64, 64, 3, 3)
    lacking = CONDITIONS["openvino"].lacking
    assert "no AMX" in lacking(Weights([fits], [8], "", ("avx2",)))
    for shape, bits in ((ragged, 8), (conv, 8), (fits, 4), (fits, 32)):
        assert "no layer here" in lacking(Weights([shape], [bits], "", amx)), (shape, bits)
    assert "property is not set" in lacking(Weights([ragged, fits], [8, 8], "", amx))
    assert "not 2:4" in CONDITIONS["tensorrt"].lacking(Weights([fits], [8], "1:4", amx))
    assert "1x1" in CONDITIONS["xnnpack"].lacking(Weights([conv, fits], [32, 32], "", amx))
    assert "1x1" not in CONDITIONS["xnnpack"].lacking(Weights([(64, 64, 1, 1)], [32], "", amx))
    assert condition("an engine of another version", Weights([], [], "", ())) == ""


def test_a_report_keeps_and_shows_them():
    pairs = (
        Pair(without="zeros", speedup=1.01, spread=(0.98, 1.03)),
        Pair(without="channels", speedup=1.5, spread=(1.4, 1.6)),
    )
    report = resnet20().model_copy(update={"zeros": ZEROS, "pairs": pairs})
    again = Report.model_validate_json(report.to_json())
    assert (again.zeros, again.pairs) == (ZEROS, pairs)
    shown = sentences(again)
    assert [line[:3] for line in shown] == ["80 ", "Pru"]
    plain = " ".join(text(report, width=400).split())
    assert all(line in plain for line in shown)
    assert all(line in html(report) for line in shown)
    assert sentences(resnet20()) == []
    assert "speed-of-pruning" not in html(resnet20())
