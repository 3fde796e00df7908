"""What stands around the code is true: templates, citation, container, the example for CI, the contributors' guide."""

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from sample_report import resnet20

import tersor
from examples.ci import check_report
from tersor.measure import unknown

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CONTRIBUTING.zh-CN", "CODE_OF_CONDUCT", "SECURITY")]
GUIDES = ROOT / "CONTRIBUTING.md", ROOT / "CONTRIBUTING.zh-CN.md"


def _yaml(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_guides_name_goals_and_files_that_exist():
    goals = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    english, chinese = (page.read_text(encoding="utf-8") for page in GUIDES)
    assert set(re.findall(r"`make (\w+)`", english)) == set(re.findall(r"`make (\w+)`", chinese)) <= goals
    for path in re.findall(r"`((?:src|tests|scripts|docs)/[\w./-]+)`", english):
        assert (ROOT / path).exists(), path
    headings, blocks = r"^#+ ", r"^```console\n.*?^```"
    assert len(re.findall(headings, english, re.MULTILINE)) == len(re.findall(headings, chinese, re.MULTILINE))
    fenced = [re.findall(blocks, text, re.MULTILINE | re.DOTALL) for text in (english, chinese)]
    assert fenced[0] == fenced[1]
    assert len(re.findall("[一-鿿]", chinese)) > 500


def test_the_bug_form_asks_for_engines_and_report():
    forms = {path.stem: _yaml(path) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert set(forms) == {"bug", "feature", "config"}
    for name in ("bug", "feature"):
        assert {"name", "description", "body"} <= set(forms[name])
        known = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert {part["type"] for part in forms[name]["body"]} <= known
        fields = [part["id"] for part in forms[name]["body"] if part["type"] != "markdown"]
        assert len(fields) == len(set(fields))
    labels = " ".join(part["attributes"].get("label", "") for part in forms["bug"]["body"])
    assert "`tersor engines`" in labels
    assert "report.json" in labels


def test_the_citation_is_of_this_version_and_licence():
    cited, project = _yaml("CITATION.cff"), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"] == tersor.__version__
    assert cited["license"] == project["license"]
    assert cited["repository-code"] == project["urls"]["Repository"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


def test_the_container_copies_what_is_there_with_the_torch_of_the_makefile():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "src"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name
    torch = re.search(r"TORCH +\?= (torch==\S+)", (ROOT / "Makefile").read_text())
    assert torch
    assert any(torch[1] in line and "whl/cpu" in line for line in lines)
    assert any(line.startswith("USER ") for line in lines)


class TestCheckReport:
    """The script that fails a build whose model lost too much."""

    @pytest.mark.parametrize(
        ("interval", "options", "code", "said"),
        [
            ((-0.002, 0.009), [], 0, "good enough: "),
            ((-0.002, 0.011), [], 1, "may have dropped by 0.011 (95 %), more than 0.01"),
            ((-0.002, 0.009), ["--min-compression", "99"], 1, "x smaller, less than 99x"),
            ((-0.002, 0.009), ["--min-speedup", "99"], 1, "in the worst round, less than 99x"),
            (None, [], 1, "has no interval: compressed.metric_interval: unknown, because of a test"),
        ],
    )
    def test_good_and_bad_reports(self, tmp_path, capsys, interval, options, code, said):
        warnings = [] if interval else [unknown("compressed.metric_interval", "of a test")]
        report = resnet20(**{"compressed.metric_interval": interval}, warnings=warnings)
        (tmp_path / "report.json").write_text(report.to_json(), encoding="utf-8")
        for path in (tmp_path, tmp_path / "report.json"):
            assert check_report.main([str(path), "--max-drop", "0.01", *options]) == code
        assert said in "".join(capsys.readouterr())

    @pytest.mark.parametrize(
        ("options", "code"), [([], 0), (["--min-compression", "2"], 1), (["--min-speedup", "1.1"], 1)]
    )
    def test_what_is_unknown_counts_where_it_was_asked_for(self, tmp_path, capsys, options, code):
        nothing = dict.fromkeys(("ratios.compression", "ratios.speedup"))
        data = json.loads(resnet20(**nothing, warnings=[unknown(path, "of a test") for path in nothing]).to_json())
        del data["headline"], data["ratios"]["speedup_spread"]
        data["compressed"]["metric_interval"] = (-0.002, 0.002)
        (tmp_path / "report.json").write_text(json.dumps(data), encoding="utf-8")
        assert check_report.main([str(tmp_path), "--max-drop", "0.01", *options]) == code
        assert ("is unknown" in capsys.readouterr().err) == bool(code)

    def test_the_report_of_a_language_model_is_refused(self, tmp_path, capsys):
        (tmp_path / "report.json").write_text('{"kind": "language"}')
        assert check_report.main([str(tmp_path), "--max-drop", "0.01"]) == 1
        assert "language model" in capsys.readouterr().err


def test_the_workflow_compresses_and_checks():
    flow = _yaml("examples/ci/compress.yml")
    assert {"name", "jobs", "permissions"} <= set(flow)
    assert True in flow  # YAML's `on`
    steps = flow["jobs"]["compress"]["steps"]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    runs = " ".join(step.get("run", "") for step in steps)
    check = re.search(r"check_report\.py (.+)", runs)
    assert "tersor compress task.py" in runs
    assert check
    options = {word for word in check[1].split() if word.startswith("--")}
    text = (ROOT / "examples/ci/check_report.py").read_text(encoding="utf-8")
    assert options <= set(re.findall(r'"(--[a-z-]+)"', text))
    assert not any(fnmatch(step.get("uses", ""), "*@main") for step in steps)
