"""Packages that are missing are named, all at once, with the command that installs them."""

import sys
import tomllib
from pathlib import Path

import pytest

import tersor
import tersor.cli
from tersor import packages
from tersor.checkpoints.architecture import import_transformers
from tersor.engines import ENGINES
from tersor.engines.base import require
from tersor.errors import EngineError, TersorError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf8"))["project"]


def names(requirements):
    return {r.partition(">")[0].strip() for r in requirements}


def test_the_tables_are_those_of_the_project():
    installed = {packages._INSTALLED_AS.get(m, m) for m in packages.CORE}
    assert installed == names(PROJECT["dependencies"])
    for extra, modules in packages.EXTRAS.items():
        wanted = names(PROJECT["optional-dependencies"][extra])
        assert {packages._INSTALLED_AS.get(m, m) for m in modules} == wanted
    own = set(PROJECT["optional-dependencies"]) - {"all", "dev", "docs", "bench", "audit"}
    assert own == set(packages.EXTRAS)


def absent(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt"])
def test_all_that_an_engine_lacks_is_named(monkeypatch, engine):
    absent(monkeypatch, "onnx", "onnxscript")
    with pytest.raises(EngineError, match=r'\(onnx, onnxscript missing\); run: pip install "tersor\[onnx\]"'):
        require(ENGINES[engine])


def test_transformers_is_named(monkeypatch):
    absent(monkeypatch, "transformers")
    with pytest.raises(EngineError, match=r'needs transformers, not installed here; run: pip install "tersor\['):
        import_transformers()


def test_a_package_of_every_installation_is_named_with_the_others(monkeypatch, capsys):
    absent(monkeypatch, "jinja2", "yaml", "tersor.pipeline.graph.outliers")
    error = ModuleNotFoundError("No module named 'jinja2'", name="jinja2.ext")
    said = r"needs pyyaml and jinja2, not installed here; run: pip install --upgrade --force-reinstall tersor"
    assert said in str(packages.of_every_installation(error))
    assert packages.of_every_installation(ModuleNotFoundError("x", name="of_the_user")) is None

    def app(words):
        raise error

    monkeypatch.setattr(tersor.cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        tersor.cli.main()
    assert ended.value.code == 1
    assert "pyyaml and jinja2" in capsys.readouterr().err


def test_a_public_name_whose_package_is_missing_says_so(monkeypatch):
    absent(monkeypatch, "jinja2")
    for name in [n for n in sys.modules if n.startswith("tersor.report") or n == "tersor.pipeline.graph.outliers"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(TersorError, match="Tersor needs jinja2, not installed here"):
        _ = tersor.outliers
