"""The page: one file, nothing from outside, everything foreign escaped."""

import re
from html.parser import HTMLParser

import pytest
from sample_report import METRIC_PATHS, UNKNOWN_METRIC, big, histogram, layers, resnet20, resnet50

from tersor.measure import read_report
from tersor.measure.schema import Histogram
from tersor.report import html, write_report
from tersor.report.layers import columns, values
from tersor.words import speaking

EVIL = (
    '</title></style></script><script>document.title="owned"</script><img src=x onerror=alert(1)>" onload="x'
)


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def _tags(page):
    parser = _Tags()
    parser.feed(page)
    return parser.found


def test_nothing_is_fetched():
    page = html(resnet20())
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
    assert not [tag for tag, _ in _tags(page) if tag in ("link", "img", "iframe", "object", "embed", "base")]
    links = [attrs["href"] for _, attrs in _tags(page) if "href" in attrs]
    assert links
    assert not [link for link in links if not re.fullmatch(r"#(layer|site)-\d+", link)]
    assert not [attrs for _, attrs in _tags(page) if attrs.get("src")]


def test_every_link_leads_to_its_place():
    tags = _tags(html(resnet20()))
    places = {attrs["id"] for _, attrs in tags if "id" in attrs}
    assert {attrs["href"][1:] for _, attrs in tags if "href" in attrs} <= places


def test_every_drawing_has_a_name_and_every_site_its_thresholds():
    page = html(resnet20())
    drawings = [attrs for tag, attrs in _tags(page) if tag == "svg"]
    named = [drawing for drawing in drawings if "aria-hidden" not in drawing]
    assert all(drawing["role"] in ("img", "group") and drawing["aria-label"] for drawing in named)
    # 7 figures before and after, the network, the profile, 5 steps; and a bar in each row, beside its numbers.
    assert len(named) == 7 + 1 + 1 + 5
    assert len(drawings) == len(named) + 22
    assert page.count("<li>minmax <b>") == page.count("data-bins") == 20 + 5


def test_light_dark_and_phone():
    page = html(resnet20())
    assert "prefers-color-scheme: dark" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page


def test_fallbacks_are_marked_and_their_rule_named():
    changed = layers()
    changed[4] = dict(changed[4], executed="fp32", note="no kernel for this stride")
    page = html(resnet20(layers=changed))
    assert "1 fell back to float" in page
    assert page.count('<tr class="fell"') == 1
    assert page.index('<tr class="fell"') == page.index("<tr", page.index("<tbody>"))  # the first row
    assert page.count("no kernel for this stride") > 1
    assert '<tr class="fell"' not in html(resnet20())


def test_everything_foreign_is_escaped():
    changed = [dict(x, name=EVIL, op=EVIL, note=EVIL, weight_format=EVIL, executed="fp32") for x in layers()]
    report = resnet20(**{
        "layers": changed, "task": EVIL, "recipe": EVIL, "engine": EVIL, "warnings": [EVIL],
        "metric": {"name": EVIL, "higher_is_better": True}, "environment.cpu": EVIL,
        "environment.isa": [EVIL], "environment.precision": EVIL, "environment.system": EVIL,
        "environment.versions": {EVIL: EVIL, "tersor": EVIL},
        "histograms": [dict(histogram(EVIL, 1), thresholds={EVIL: (0, 1)})],
        "audit": [{"name": EVIL, "op": EVIL, "planned": EVIL, "executed": EVIL, "note": EVIL}],
        "calibration": {"adequate": False, "notes": [EVIL]},
    })  # fmt: skip
    evil, good = _tags(html(report)), _tags(html(resnet20()))
    assert {tag for tag, _ in evil} <= {tag for tag, _ in good} | {"label", "strong"}
    assert [tag for tag, _ in evil].count("script") == 1
    assert not [attrs for _, attrs in evil if {"onload", "onerror", "src"} & set(attrs)]


def test_only_our_script_may_run():
    page = html(resnet20())
    policy = next(attrs["content"] for tag, attrs in _tags(page) if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


def test_a_report_with_nothing_but_its_name():
    nothing = dict.fromkeys(
        [*METRIC_PATHS, "original.bytes", "compressed.bytes", "original.latency_ms", "compressed.latency_ms",
         "original_eager.latency_ms", "ratios.speedup", "ratios.speedup_over_eager", "ratios.compression",
         "original.memory_bytes", "compressed.memory_bytes"]
    )  # fmt: skip
    warnings = [UNKNOWN_METRIC, "of a test: " + ", ".join(nothing)]
    page = html(resnet20(**nothing, layers=[], audit=[], histograms=[], calibration=None, warnings=warnings))
    assert "top-1 accuracy not measured" in page
    assert "Calibration ranges" not in page


def test_layers_that_add_no_noise_are_left_out_of_the_profile():
    changed = [dict(x, sqnr_db=150.0) if at % 2 else x for at, x in enumerate(layers())]
    assert "SQNR of 11 layers" in html(resnet20(layers=changed))
    changed[3] = dict(changed[3], executed="fp32")
    page = html(resnet20(layers=changed))
    assert "SQNR of 12 layers" in page
    assert page.count('class="mark"') == 1
    assert "No layer adds noise" in html(resnet20(layers=[dict(x, sqnr_db=150.0) for x in layers()]))


def test_columns_of_a_histogram_keep_its_last_bin_and_extremes_do_not_break_it():
    found = Histogram(site="x", bins=tuple(range(2050)), counts=(*[0] * 2048, 5))
    edges, counts = columns(found)
    assert len(counts) <= 40
    assert (edges[-1], counts[-1]) == (2049, 5)
    for ends in ((-1.7e308, 1.7e308), (0.0, 5e-324)):
        numbers = str(values(Histogram(site="x", bins=ends, counts=(3,)))["bins"])
        assert not re.search("nan|inf", numbers)


def test_energy_is_drawn_where_it_was_read():
    assert "Energy of one call" not in html(resnet20())
    assert "0.25 J" in html(resnet20(**{"original.energy_joules": 0.5, "compressed.energy_joules": 0.25}))


def test_a_page_for_resnet50_is_small():
    report = resnet50()
    assert (len(report.layers), len(report.audit), len(report.histograms)) == (121, 113, 71)
    assert len(html(report).encode()) <= 400_000


@pytest.mark.slow
def test_five_hundred_layers_stay_usable():
    page = html(big())
    assert len(page) < 2_500_000
    assert "graph of 500 layers" in page
    assert "488 more sites" in page


def test_both_files_are_written(tmp_path):
    report = resnet20(headline=None)
    data, page = write_report(report, tmp_path)
    assert read_report(data).headline == report.headline
    assert page.read_text(encoding="utf-8") == html(report)


ENGLISH = r"[A-Za-z][A-Za-z'’]+(?: [A-Za-z][A-Za-z'’]+)+"


@pytest.mark.parametrize("speed", [2.1, 0.8])
def test_in_chinese_only_names_are_english(speed):
    spread = (speed - 0.1, speed + 0.1)
    changed = [dict(x, executed="fp32", note=None) if at == 4 else x for at, x in enumerate(layers())]
    report = resnet20(**{
        "environment.system": "Linux", "warnings": [], "calibration.notes": [], "ratios.speedup": speed,
        "ratios.speedup_spread": spread, "layers": changed if speed < 1 else layers(),
    })  # fmt: skip
    with speaking("zh"):
        page = re.sub(r"(?s)<(style|script)>.*?</\1>", "", html(report))
    assert '<html lang="zh">' in page
    named = re.findall(r'(?:aria-label|placeholder|data-label|data-copy|data-copied)="([^"]*)"', page)
    assert re.findall(ENGLISH, "\n".join([re.sub(r"<[^>]+>", "\n", page), *named])) == []
    assert not re.findall(r"<h[23]>[^<\u4e00-\u9fff]+<", page)
