"""Names of foreign files do nothing: in every page, in every table, in errors, in a recipe that is copied."""

import base64
import dataclasses
import functools
import hashlib
import io
import re
import shutil
import subprocess
import warnings
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from types import SimpleNamespace

import pytest
import rich.console
import torch
import yaml
from rich.progress import Progress
from sample_report import layers, resnet20

import tersor
from tersor.errors import RecipeError, TersorError
from tersor.inert import plain
from tersor.measure.choosing.sensitivity import LayerCost, Stage
from tersor.measure.language import LanguageReport, WeightRecord
from tersor.measure.schema import Environment
from tersor.network.calibrate import Calibrated, Calibration
from tersor.network.planned import PlannedLayer
from tersor.network.sites import Plan
from tersor.observers.compare import Estimate
from tersor.observers.quality import CalibrationQuality
from tersor.pipeline.folder.plan import WeightPlans
from tersor.pipeline.graph.outliers import Outliers
from tersor.pipeline.modules.plan import ModulePlans
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe
from tersor.report import html, print_report
from tersor.report.compare import page as compare_page
from tersor.report.compare import side_by_side
from tersor.report.compare import table as compare_table
from tersor.report.figures import figures
from tersor.report.language import language_html, print_language_report
from tersor.report.notebook.views import VIEWS
from tersor.report.outliers import page as outliers_page
from tersor.report.outliers import table as outliers_table
from tersor.report.sensitivity import page as sensitivity_page
from tersor.report.sensitivity import table as sensitivity_table
from tersor.report.shell import rendered
from tersor.report.tables.plan import folder_table
from tersor.search.sensitivity import Sensitivity
from tersor.terminal import Inert, Terminal

# Ends every context of a page; markup and links of rich; escapes, C1 codes, directions, nothing seen, a lone surrogate.
HOSTILE = (
    "</title></style></script><script>document.title='owned'</script><svg onload=alert(1)><!--",
    "\"' onmouseover=alert(1) x='",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "[red]a[/red][/][link=file:///etc/passwd]b[/link]:smile:",
    "\x1b[2J\x1b]0;owned\x07\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "\x9b31mred\x08\x08\x08\r\x00\x7f",
    "safe\nerror: not ours\r\nwarning\x0bx\u2028y\x85z",
    "\u202egnp.exe\u2066\u200b\u200f\ufeff\U000e0041",
    "lone \ud800",
    "- !!python/object/apply:os.system ['x']: &a *a # %",
)
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0041]")


def audited(evil):
    return {"name": evil, "op": evil, "planned": evil, "executed": evil, "note": evil}


def network_report(evil):
    changed = [dict(x, name=evil, op=evil, note=evil, weight_format=evil) for x in layers(5)]
    tried = [
        {"name": evil, "speedup": 2.0, "over_first": 1.0, "bytes": 9, "drop": 0.001, "seconds": 1.0, "front": True},
        {"name": evil, "speedup": 3.0, "over_first": 1.5, "bytes": 8, "drop": 0.004, "seconds": 1.0, "chosen": True,
         "folder": evil},
        {"name": evil, "seconds": 1.0, "error": evil},
    ]  # fmt: skip
    contract = {"goal": [evil], "kept": True, "proven": False, "verdict": [evil, evil], "evaluations": 5,
                "seconds": 9.0, "budget": 60.0, "tried": tried}  # fmt: skip
    return resnet20(layers=changed, task=evil, recipe=evil, engine=evil, warnings=[evil], audit=[audited(evil)],
                    contract=contract)  # fmt: skip


def language_report(evil):
    weight = WeightRecord(name=evil, shape=(4, 4), format=evil, method=evil, bytes=8, note=evil)
    return LanguageReport(
        model=evil, architecture=evil, recipe=evil, layout=evil, calibration=evil, original_bytes=9, compressed_bytes=3,
        environment=Environment(cpu=evil, isa=(evil,), threads=1, precision=evil, versions={evil: evil}), seed=0,
        bits_per_weight=4.0, weights=(weight, weight.model_copy(update={"format": None})), timings_s={evil: 1.0},
        warnings=(evil,), peak_bytes=1,
    )  # fmt: skip


@functools.cache
def found_outliers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
    task = tersor.Task("t", model, (torch.zeros(1, 4),), lambda: [(torch.ones(8, 4),)])
    return tersor.outliers(task, progress=False)


def some_outliers(evil):
    return [dataclasses.replace(layer, name=evil, op=evil) for layer in found_outliers().layers]


def sensitivity_of(evil):
    cost = LayerCost(evil, evil, "ffn", evil, 1, 30.0, 1e-3, 2e-3)
    stages = (Stage("ffn", 1, 2e-3, 0.5),)
    return Sensitivity(evil, evil, evil, 3, (cost,), 2e-3, (cost,), 1e-4, stages, evil)


def comparison_of(evil):
    return side_by_side({evil: figures(network_report(evil)), "other": figures(resnet20())})


PAGES = {
    "report": lambda evil: html(network_report(evil)),
    "language": lambda evil: language_html(language_report(evil)),
    "compare": lambda evil: compare_page(comparison_of(evil)),
    "outliers": lambda evil: outliers_page(evil, 3, some_outliers(evil)),
    "sensitivity": lambda evil: sensitivity_page(sensitivity_of(evil)),
}
TABLES = {
    "report": lambda evil, to: print_report(network_report(evil), to),
    "language": lambda evil, to: print_language_report(language_report(evil), to),
    "compare": lambda evil, to: to.print(Inert(compare_table(comparison_of(evil)))),
    "outliers": lambda evil, to: to.print(Inert(outliers_table(some_outliers(evil)))),
    "sensitivity": lambda evil, to: to.print(Inert(sensitivity_table(sensitivity_of(evil)))),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_shows_names_and_runs_only_our_script(kind):
    wanted = Counter(elements(PAGES[kind]("name")))
    for evil in HOSTILE:
        text = PAGES[kind](evil)
        assert not ACTS.search(text)
        found = Counter(elements(text))
        assert found["script"] == found["style"] == 1
        assert found == wanted or kind == "report"  # a report of other names has other problems
        assert found.keys() <= wanted.keys() | {"strong", "label"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAGES)
def test_in_a_browser_names_run_nothing_and_the_page_works(kind, tmp_path):
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here")
    page = tmp_path / "page.html"
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --enable-logging=stderr --virtual-time-budget=5000"
    for evil in HOSTILE[:4]:
        page.write_text(PAGES[kind](evil), encoding="utf-8")
        command = [program, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
        assert "<title>owned" not in done.stdout
        assert "Content Security Policy" not in done.stderr  # nothing of ours was refused, nothing of theirs was tried
        assert "<form hidden" not in done.stdout  # our script has run


def elements(page):
    """The names of elements, each attribute of which is one that we write."""

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            names = [name for name, _ in attrs]
            assert not [name for name in names if name.startswith("on")]
            assert not {"src", "style", "action"} & {*names}
            links = [value for name, value in attrs if name == "href"]
            assert all(re.fullmatch(r"#(layer|site)-\d+|\.\.?/[-\w.%/]+/report\.html", link) for link in links)
            self.found += [tag] if tag != "wbr" else []  # where a dotted name may break

    parser = Parser()
    parser.found = []
    parser.feed(page)
    return parser.found


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_has_a_policy_of_hashes_before_anything_else(kind):
    text = PAGES[kind]("name")
    first = r'<head>\s*<meta charset="utf-8">\s*<meta http-equiv="Content-Security-Policy" content="(.*?)">'
    policy = re.search(first, text)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; ")
    assert "unsafe" not in policy.group(1)
    for tag in ("style", "script"):
        (content,) = re.findall(rf"(?s)<{tag}>(.*?)</{tag}>", text)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy.group(1)
    assert not re.search(r"\sstyle=|\ssrc=|\shref=(?!\"#)|https?:", text)  # the policy would refuse them


def test_no_template_writes_a_head_or_script_of_its_own():
    found = [f for f in files("tersor.report").joinpath("page").iterdir() if f.name.endswith(".j2")]
    assert len(found) == len(PAGES) + 1
    for file in found:
        text = file.read_text(encoding="utf-8")
        assert text.count("{{ head }}") == text.count("{{ foot }}") == (file.name != "parts.html.j2")
        assert not re.search(r"<script|<style|<meta|\|\s*safe|autoescape", text)


def test_what_is_no_string_is_escaped_too():
    class Foreign:
        def __str__(self):
            return "<b>\x1b"

    cells = dict.fromkeys("shape format bytes error rtn tokens method".split(), Foreign())
    weights = [SimpleNamespace(name="a", fell=False, **cells)]
    view = {"report": language_report("x"), "headline": Foreign(), "floats": False}
    view |= dict.fromkeys(("tiles", "worst", "facts"), ())
    assert "<b>" not in (text := rendered("language.html.j2", weights=weights, **view))
    assert r"&lt;b&gt;\x1b" in text


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("made", [Terminal, rich.console.Console], ids=["ours", "a caller's"])
def test_a_table_shows_names_in_any_console(kind, made):
    for evil in HOSTILE:
        to = made(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
        TABLES[kind](evil, to)
        assert not ACTS.search(to.file.getvalue())
        assert "[link=" not in evil or "[red]a[/red]" in to.file.getvalue()


def test_a_notebook_shows_names(monkeypatch):
    shown = []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.extend(segments))
    for evil in HOSTILE:
        print_report(network_report(evil), rich.console.Console(force_jupyter=True, width=200))
    assert shown
    assert not any(ACTS.search(segment.text) for segment in shown)


def compressed(evil, report=None):
    done = object.__new__(tersor.Compressed)
    parts = {"recipe": Recipe(name=evil), "report": report, "subject": SimpleNamespace(plan=plan_of(evil)),
             "deployed": SimpleNamespace(engine=evil, folder=None)}  # fmt: skip
    done.__dict__.update(parts)
    return done


def plan_of(evil):
    return Plan((), tuple(PlannedLayer(evil, f"{k}", evil, evil, evil, evil) for k in range(2)))


def calibrated(evil):
    nothing, estimates = Calibration({}, {}, 0, 0), {evil: [Estimate(evil, 0.0, 1.0, 0.1, 30.0, 0.0), Estimate(evil)]}
    return Calibrated(plan_of(evil), nothing, estimates, {evil: evil}, CalibrationQuality(3, {}, 0.0, (evil,)))


VALUES = {
    "Report": network_report,
    "LanguageReport": language_report,
    "Compressed": lambda evil: compressed(evil, network_report(evil)),
    "Compressed, not measured": compressed,
    "Plan": plan_of,
    "WeightPlans": lambda evil: WeightPlans([SimpleNamespace(name=evil, shape=(1,), reason=evil, touched=True)]),
    "ModulePlans": lambda evil: ModulePlans(
        [SimpleNamespace(name=evil, reason=evil, weights=None, weighted=SimpleNamespace(op=evil))]
    ),
    "Comparison": comparison_of,
    "Outliers": lambda evil: Outliers(evil, 3, tuple(some_outliers(evil))),
    "Sensitivity": sensitivity_of,
    "Calibrated": calibrated,
}


def test_every_value_that_shows_itself_is_tried():
    assert {kind.partition(",")[0] for kind in VALUES} == VIEWS.keys()


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_shows_names_in_one_line_in_a_terminal_and_in_a_notebook(kind):
    elements_of_names = fragment(VALUES[kind]("name")._repr_html_())
    for evil in HOSTILE:
        value = VALUES[kind](evil)
        assert repr(value) == str(value)
        assert repr(value).startswith(f"<{kind.partition(',')[0]} ")
        assert not ACTS.search(repr(value))
        assert "\n" not in repr(value)
        text = value._repr_html_()
        assert not ACTS.search(text)
        assert fragment(text) <= elements_of_names | {"br", "span"}  # a report of other names has other problems
        to = rich.console.Console(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
        to.print(value)
        assert not ACTS.search(to.file.getvalue())


def fragment(text):
    """The names of elements in a fragment for notebooks, whose styles are ours and which does nothing."""

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.add(tag)
            assert dict(attrs).keys() <= {"style", "class", "scope", "tabindex"}
            styles.update(declaration.partition(":")[0] for declaration in dict(attrs).get("style", "").split(";"))

    found, styles = set(), set()
    Parser().feed(text)
    assert found <= set("div p span br table thead tbody tr th td pre".split())
    assert not {style for style in styles if style and not re.fullmatch(r"[a-z-]+", style)}
    assert not {"position", "z-index", "background-image"} & styles
    return found


def test_plain_strings_in_our_console_are_no_markup():
    for evil in HOSTILE:
        to = Terminal(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
        to.print(evil, soft_wrap=True)
        to.print(folder_table([SimpleNamespace(name=evil, shape=(1,), reason=evil, touched=True)], preflight()))
        assert not ACTS.search(to.file.getvalue())
        assert ":smile:" not in evil or evil in to.file.getvalue()


def preflight():
    counts = dict.fromkeys("original compressed memory disk pruned quantized skipped".split(), 1)
    return SimpleNamespace(**counts, warnings=("[b]",))


def test_progress_shows_names(monkeypatch):
    monkeypatch.setattr(Progress, "start", lambda self: None)
    stages = Stages()
    stages._bars.console.file = io.StringIO()
    with stages.stage("a", "[red]x[/oops]\x1b[2J") as stage:
        stage.say("[/nothing]\x1b[31m")
        stages._bars.console.print(stages._bars.get_renderable())
    assert "[/nothing]" in stages._bars.console.file.getvalue()
    assert "\x1b[31m" not in stages._bars.console.file.getvalue()


@pytest.mark.parametrize("evil", HOSTILE)
def test_an_error_is_one_line_and_inert(evil):
    text = str(TersorError(f"the layer {evil} is wrong"))
    assert not ACTS.search(text)
    assert "\n" not in text
    assert text.startswith("the layer ")


@pytest.mark.parametrize("evil", [e for e in HOSTILE if "\ud800" not in e])
def test_a_recipe_with_a_hostile_name_is_the_same_when_copied(evil):
    recipe = Recipe(name=evil)
    text = recipe.to_yaml()
    assert not ACTS.search(text)
    assert Recipe.from_yaml(text).name == evil
    assert next(iter(yaml.safe_load(text))) == "name"


def test_errors_of_a_recipe_are_inert():
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml("weights: {\x00", "\x1b[2J.yaml")
    assert not ACTS.search(str(caught.value))


def test_plain_keeps_every_script_and_spells_what_acts():
    assert plain("Größe 層 שלום 😀") == "Größe 層 שלום 😀"
    assert plain("a\tb\nc\xa0d") == "a b c d"
    assert plain("\x1b\u202e\ud800\x9b") == r"\x1b\u202e\ud800\x9b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(plain(e).encode() for e in HOSTILE)
