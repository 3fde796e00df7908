"""A search in a report: the verdict first, each candidate in a row, the front as a picture, in both languages."""

import io

import pytest
import rich.console
from sample_report import resnet20

from tersor.measure.parts.contract import Contract
from tersor.report import contract, html, print_report
from tersor.words import speaking

TRIED = (
    {"name": "int8-static", "speedup": 2.8, "spread": (2.6, 2.9), "over_first": 1.0, "bytes": 382_046, "drop": -0.0006,
     "seconds": 6.2, "front": True, "folder": "00-int8-static"},
    {"name": "pruned by 1.25x latency", "speedup": 3.9, "over_first": 1.42, "bytes": 226_500, "drop": 0.1246,
     "seconds": 226.0, "front": True, "folder": "01-pruned"},
    {"name": "pruned by 1.12x latency", "speedup": 3.1, "over_first": 1.12, "bytes": 300_000, "drop": 0.003,
     "seconds": 90.0, "front": True, "chosen": True},
    {"name": "pruned by 1.06x latency", "seconds": 80.0, "error": "the target was not reached"},
)  # fmt: skip
ASKED = {
    "goal": ("at most 0.5 points lost",), "kept": True, "proven": False, "bound": 0.005, "drop": 0.003,
    "interval": (0.0005, 0.006), "samples": 5000, "needed": 9000,
    "verdict": ("Not proven with 5000 samples: 0.30 points of 0.50 points lost (0.05 points to 0.60 points); "
                "9000 would do.",),
    "evaluations": 8, "seconds": 400.0, "budget": 600.0, "tried": TRIED,
}  # fmt: skip


def printed(report):
    out = io.StringIO()
    print_report(report, rich.console.Console(file=out, width=140))
    return out.getvalue()


def test_a_terminal_tells_the_verdict_and_every_candidate():
    text = printed(resnet20(contract=ASKED))
    assert "At most 0.5 points lost: Not proven with 5000 samples" in text
    told = "int8-static", "pruned by 1.12x latency", "+0.30 points", "the target was not reached", "8 evaluations"
    for words in told:
        assert words in text
    assert "4 candidates, 8 evaluations, 400 s of 600 s" in text


def test_a_page_draws_what_is_lost_against_the_latency():
    page = html(resnet20(contract=ASKED))
    assert 'id="contract"' in page
    assert page.count('class="point') == 3
    assert page.count('class="spread"') == 1
    assert "<strong>pruned by 1.12x latency</strong>" in page
    assert 'id="contract"' not in html(resnet20())


def test_a_single_candidate_needs_no_picture():
    found = Contract.model_validate(ASKED | {"tried": TRIED[:1]})
    assert contract.picture(found, fraction=True) is None


@pytest.mark.parametrize("kept", [True, False])
def test_it_is_told_in_chinese(kept):
    with speaking("zh"):
        text = printed(resnet20(contract=ASKED | {"kept": kept}))
        page = html(resnet20(contract=ASKED | {"kept": kept}))
    assert "损失至多 0.5" in text
    assert "需要 9000 个" in text
    assert "按 1.12x latency 剪枝" in page
    assert ('class="alarm">损失至多' in page) != kept
