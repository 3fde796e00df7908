"""The page: one file, nothing from outside, everything foreign escaped, and read by a real browser."""

import json
import os
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import pytest
from sample_report import METRIC_PATHS, UNKNOWN_METRIC, histogram, layers, resnet20

from tersor.measure import read_report
from tersor.report import html, write_report

EVIL = (
    '</title></style></script><script>document.title="owned"</script><img src=x onerror=alert(1)>" onload="x'
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom"
)
# Puts the page into a frame as wide as a small phone and writes what it finds there into its own title.
FRAME = """<!doctype html><title>waiting</title><iframe style="width:360px;height:700px;border:0"
  srcdoc="{page}"></iframe>
<script>
document.querySelector("iframe").onload = event => {{
  const inner = event.target.contentDocument;
  for (const details of inner.querySelectorAll("details")) details.open = true;
  const room = inner.documentElement.clientWidth;
  // The head of a table is there for screen readers only.
  const seen = [...inner.querySelectorAll("body *")].filter(e => !e.closest("thead"));
  const wide = seen.filter(e => e.getBoundingClientRect().right > room + .5);
  const find = inner.getElementById("layers");
  find.value = "LAYER1.0";
  find.dispatchEvent(new Event("input"));
  const rows = [...inner.querySelector("[data-filter=layers]").tBodies[0].rows];
  document.title = JSON.stringify({{
    over: inner.documentElement.scrollWidth - room, wide: wide.map(e => e.outerHTML.slice(0, 80)),
    shown: rows.filter(row => row.offsetHeight > 0).length, drawings: inner.querySelectorAll("svg").length,
    flat: [...inner.querySelectorAll("svg")].filter(e => e.getBoundingClientRect().height < 5).length,
    headline: inner.querySelector("h1").innerText, title: inner.title, script: inner.scripts.length,
  }});
}};
</script>"""


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


def _big():
    names = [
        dict(x, name=f"model.encoder.blocks.{at}.attention.{x['name']}") for at, x in enumerate(layers(500))
    ]
    return resnet20(layers=names, histograms=[histogram(f"site {at}", at % 7, 2048) for at in range(500)])


def test_nothing_is_fetched():
    page = html(resnet20())
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
    assert not [tag for tag, _ in _tags(page) if tag in ("link", "img", "iframe", "object", "embed", "base")]
    assert not [attrs for _, attrs in _tags(page) if attrs.get("src") or attrs.get("href")]


def test_every_drawing_has_a_name_and_every_site_its_thresholds():
    page = html(resnet20())
    drawings = [attrs for tag, attrs in _tags(page) if tag == "svg"]
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    # 7 figures before and after, the profile, 22 layers, 5 histograms with 5 ranges each, 5 steps.
    assert len(drawings) == 7 + 1 + 22 + 5 * (1 + 5) + 5


def test_light_dark_and_phone():
    page = html(resnet20())
    assert "prefers-color-scheme: dark" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page


def test_fallbacks_are_marked_and_their_rule_named():
    changed = layers()
    changed[4] = dict(changed[4], executed="fp32", note="no kernel for this stride")
    page = html(resnet20(layers=changed))
    assert "1 fell back to float" in page
    assert page.count('<tr class="fell">') == 2
    assert "no kernel for this stride" in page
    assert '<tr class="fell">' not in html(resnet20())


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
    assert "SQNR over 11 layers" in html(resnet20(layers=changed))
    changed[3] = dict(changed[3], executed="fp32")
    page = html(resnet20(layers=changed))
    assert "SQNR over 12 layers" in page
    assert page.count('class="mark"') == 1
    assert "No layer adds noise" in html(resnet20(layers=[dict(x, sqnr_db=150.0) for x in layers()]))


def test_energy_is_drawn_where_it_was_read():
    assert "Energy of one call" not in html(resnet20())
    assert "0.25 J" in html(resnet20(**{"original.energy_joules": 0.5, "compressed.energy_joules": 0.25}))


def test_five_hundred_layers_stay_usable():
    page = html(_big())
    assert len(page) < 2_500_000
    assert "The 24 with the largest error" in page
    assert "488 more sites" in page


def test_both_files_are_written(tmp_path):
    report = resnet20(headline=None)
    data, page = write_report(report, tmp_path)
    assert read_report(data).headline == report.headline
    assert page.read_text(encoding="utf-8") == html(report)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Opens a page and returns its DOM as text."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        reason = "no chromium here; apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    def dump(path):
        profile = tmp_path_factory.mktemp("profile")
        command = [program, *FLAGS.split(), f"--user-data-dir={profile}", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return dump


def test_a_real_browser_shows_the_report(browser, tmp_path):
    _, page = write_report(resnet20(), tmp_path)
    dom = browser(page)
    words = " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(style|script)>.*?</\1>", "", dom)).split())
    assert words.startswith(
        "resnet20-cifar10: 3.3x smaller, 2.1x faster, top-1 accuracy 91.70 % -&gt; 91.68 %"
    )
    for section in (
        "Before and after",
        "Quantization error of each layer",
        "Planned and executed",
        "Calibration ranges",
    ):
        assert section in words
    assert "layer3.2.relu" in words
    # The filter's form is hidden until the script has run: it ran.
    assert re.search(r"<form>\s*<input", dom)


@pytest.mark.parametrize(
    "report", [resnet20(), _big(), resnet20(**{"ratios.speedup": 0.8})], ids=["r20", "big", "slow"]
)
def test_a_small_phone_needs_no_sideways_scrolling(browser, tmp_path, report):
    path = tmp_path / "frame.html"
    path.write_text(FRAME.format(page=escape(html(report))), encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browser(path), re.S).group(1)
    found = json.loads(title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["over"] == 0
    assert found["wide"] == []
    assert found["flat"] == 0
    assert found["shown"] == sum("layer1.0" in layer.name for layer in report.layers)
    assert found["script"] == 1


def test_in_a_real_browser_nothing_foreign_runs(browser, tmp_path):
    report = resnet20(task=EVIL, layers=[dict(x, name=EVIL) for x in layers()])
    _, page = write_report(report, tmp_path)
    dom = browser(page)
    assert "<title>owned" not in dom
    assert "<img" not in dom
