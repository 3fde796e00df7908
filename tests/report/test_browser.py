"""The pages in a real browser: their looks by the boxes of their elements, and what they do when they are used."""

import json

import pytest
import yaml
from browser import CHECK, DESK, PHONE, browser
from sample_report import big, layers, resnet20, resnet50

from tersor.recipe import Recipe
from tersor.report import html
from tersor.report.language import language_html
from tests.report.test_language import GPTQ, weight
from tests.report.test_language import report as language_report
from tests.report.test_training import trained as training

pytestmark = pytest.mark.slow
EVIL = '</title></script><script>document.title="owned"</script><img src=x onerror=alert(1)>'
OPEN = "document.querySelectorAll('details').forEach(part => { part.open = true; })"


@pytest.fixture(scope="module")
def tab():
    with browser() as found:
        yield found


@pytest.fixture
def shown(tab, tmp_path):
    """Opens the page of a report."""

    def show(report, width=DESK, dark=False):
        path = tmp_path / "report.html"
        path.write_text(html(report), encoding="utf-8")
        tab.open(path, width, dark)
        return tab

    return show


def fallen():
    found = layers()
    found[4] = dict(found[4], executed="fp32", note="no kernel for this stride")
    return resnet20(layers=found, **{"ratios.speedup": 0.8, "ratios.speedup_spread": (0.7, 0.85)})


def trained():
    """One training that helped, and a long one in vain."""
    return resnet20(trainings=[training(3), training(15, after=0.2, kept=False)])


REPORTS = {"good": resnet20, "bad": fallen, "resnet50": resnet50, "big": big, "trained": trained}


@pytest.mark.parametrize("kind", REPORTS)
@pytest.mark.parametrize("width", [DESK, PHONE, 360])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_or_overlaps(shown, kind, width, dark):
    tab = shown(REPORTS[kind](), width, dark)
    assert tab.run(CHECK) == []
    tab.run("show(0); show(3)")
    if kind != "big":
        tab.run(OPEN)
    assert tab.run(CHECK) == []


def test_the_table_is_sorted_and_filtered(shown):
    tab = shown(resnet20())
    names = "[...document.querySelectorAll('.layers tbody tr:not([hidden]) .name')].map(part => part.textContent)"
    errors = [x["name"] for x in sorted(layers(), key=lambda x: x["sqnr_db"])]
    assert tab.run(names) == errors
    tab.run("document.querySelectorAll('.layers th button')[0].click()")
    assert tab.run(names) == [x["name"] for x in layers()]
    assert tab.run("document.querySelector('.layers th').getAttribute('aria-sort')") == "ascending"
    tab.run("document.querySelectorAll('.layers th button')[0].click()")
    assert tab.run(names) == [x["name"] for x in layers()][::-1]
    tab.run("(() => { const sort = document.getElementById('layers-sort'); sort.value = '';"
            "sort.dispatchEvent(new Event('change')) })()")  # fmt: skip
    assert tab.run(names) == errors
    tab.run("(() => { const find = document.getElementById('layers'); find.value = 'LAYER1.0';"
            "find.dispatchEvent(new Event('input')) })()")  # fmt: skip
    assert tab.run(names) == [name for name in errors if "layer1.0" in name]
    assert tab.run("document.getElementById('layers-count').textContent") == "2 / 22"


def test_sizes_and_errors_are_sorted_as_numbers(tab, tmp_path):
    rows = {"a": (987_000, 9.8e-5), "b": (1_090_000, 1.23e-4), "c": (900, 2e-3), "d": (1_024, 5.0)}
    weights = [weight(name, GPTQ, bytes=size, error=error, rtn_error=1.0) for name, (size, error) in rows.items()]
    (tmp_path / "report.html").write_text(language_html(language_report(*weights)), encoding="utf-8")
    tab.open(tmp_path / "report.html")
    names = "[...document.querySelectorAll('[data-filter=weights] tbody .name')].map(part => part.textContent)"
    for column, expected in ((2, ["c", "d", "a", "b"]), (3, ["a", "b", "c", "d"])):
        tab.run(f"document.querySelectorAll('[data-filter=weights] th button')[{column}].click()")
        assert tab.run(names) == expected


def test_only_fallbacks_are_shown_on_demand(shown):
    tab = shown(fallen())
    tab.run("document.getElementById('layers-only').click()")
    assert tab.run("[...document.querySelectorAll('[data-layer]')].filter(row => !row.hidden).length") == 1


def test_a_layer_opens_with_its_drawings_and_a_rule_that_can_be_copied(shown):
    tab = shown(resnet20())
    # The second layer reads the values of conv1.
    x, y = place(tab, "[data-layer='1'] .name")
    tab.click(x, y)
    open_row = "document.querySelector('[data-layer=\"1\"] + tr.open')"
    assert tab.run(f"{open_row}.offsetHeight") > 300
    assert tab.run(f"[...{open_row}.querySelectorAll('h4')].map(part => part.textContent)") == [
        "Rule to change it", "Weights before quantization", "Activations it reads: conv1",
    ]  # fmt: skip
    assert tab.run(f"{open_row}.querySelectorAll('svg').length") == 3 + 2
    tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    tab.run("document.querySelector('[data-layer=\"1\"] + tr.open').scrollIntoView()")
    tab.click(*place(tab, "tr.open button.copy"))
    said = "document.querySelector('tr.open button.copy').textContent"
    wait = f"const look = () => ({said} === 'Copied' || Date.now() > end) ? done({said}) : setTimeout(look, 50)"
    assert tab.run(f"new Promise(done => {{ const end = Date.now() + 20000; {wait}; look() }})") == "Copied"
    copied = tab.run("navigator.clipboard.readText().catch(() => String(getSelection()))")
    (rule,) = Recipe.from_yaml(copied).quantize.rules
    assert rule.matches("layer1.0.conv1", "conv2d")
    assert not rule.matches("layer1.0.conv2", "conv2d")
    assert yaml.safe_load(copied)["base"] == "int8-static"
    tab.run("scrollTo(0, 0)")
    tab.click(*place(tab, "[data-layer='1'] .name"))
    assert tab.run(open_row) is None


def test_exact_values_stand_under_the_pointer(shown):
    tab = shown(resnet20())
    tab.run("show(1)")
    tips = []
    for drawing in (".bar", "[data-places]", "a.node", "tr.open .counts", "tr.open .channels"):
        x, y = place(tab, drawing)
        tab.move(x, y)
        tab.move(x + 1, y)
        tips.append(tab.run("document.querySelector('.tip').textContent"))
    # The values of the histogram's middle column.
    middle = tips.pop(3)
    assert tips[0] == "FP32: 1.10 MB"
    assert " / " in tips[1]
    assert tips[2].startswith("conv1: 3")
    assert json.loads(middle.split(": ")[1].replace(",", "")) > 1000
    assert tips[3].split(": ")[0] == "128–135"


def test_the_network_is_panned_zoomed_and_leads_to_a_layer(shown):
    tab = shown(resnet50())
    width = "document.querySelector('.picture').getBoundingClientRect().width"
    before = tab.run(width)
    tab.run("document.querySelector('[data-zoom=\"1.25\"]').click()")
    assert tab.run(width) == pytest.approx(before * 1.25)
    tab.run("document.querySelector('[data-zoom=fit]').click()")
    assert tab.run(f"{width} <= document.querySelector('.canvas').clientWidth + 1")
    tab.run("document.querySelector('[data-zoom=\"1:1\"]').click()")
    tab.run("document.querySelector('.canvas').scrollLeft = 0")
    tab.run("document.querySelector('.canvas').scrollIntoView()")
    x, y = place(tab, ".canvas")
    tab.drag(x, y, x - 200, y)
    assert tab.run("document.querySelector('.canvas').scrollLeft") == 200
    assert tab.run("document.querySelectorAll('tr.open').length") == 0
    tab.run("document.querySelector('.canvas').scrollLeft = 0")
    tab.click(*place(tab, "a.node"))
    assert tab.run("document.querySelectorAll('[data-layer=\"0\"] + tr.open').length") == 1


def test_the_page_is_read_without_its_script(shown, tab):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        shown(resnet20())
        words = tab.run("document.body.innerText")
        assert tab.run("document.querySelector('form').hidden")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
    for name in ("Before and after", "layer3.2.add", "Layer by layer", "chosen"):
        assert name in words


def test_nothing_foreign_runs(shown):
    tab = shown(resnet20(task=EVIL, layers=[dict(x, name=EVIL + x["name"]) for x in layers()]))
    tab.run("show(0); show(1)")
    assert tab.run("document.title") != "owned"
    assert tab.run("document.querySelectorAll('img').length") == 0


def place(tab, selector):
    """The middle of an element, scrolled into view."""
    return tab.run(f"""(() => {{
      const part = document.querySelector({json.dumps(selector)});
      const box = () => part.getBoundingClientRect();
      if (box().top < 0 || box().bottom > innerHeight) part.scrollIntoView({{block: "center"}});
      return [box().left + Math.min(box().width, innerWidth) / 2, box().top + box().height / 2];
    }})()""")
