"""The public names: what they are, and that each is imported when it is first used."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import tersor


def test_every_public_name_is_the_object_that_its_module_defines():
    assert [*tersor._DEFINED_IN, "metrics"] == sorted(tersor.__all__, key=[*tersor._DEFINED_IN, "metrics"].index)
    for name, module in tersor._DEFINED_IN.items():
        assert getattr(tersor, name) is getattr(importlib.import_module(module), name)
    assert set(tersor.__all__) <= set(dir(tersor))


def test_type_checkers_see_the_same_names_from_the_same_modules():
    (block,) = [
        node
        for node in ast.parse(inspect.getsource(tersor)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {**tersor._DEFINED_IN, "metrics": "tersor"}


def test_modules_are_attributes():
    assert tersor.metrics is importlib.import_module("tersor.metrics")
    assert tersor.measure is importlib.import_module("tersor.measure")
    with pytest.raises(AttributeError, match="module 'tersor' has no attribute 'nosuch'"):
        _ = tersor.nosuch
    with pytest.raises(ImportError, match="nosuch"):
        from tersor import nosuch  # noqa: F401


def test_importing_the_package_imports_nothing_of_it():
    code = (
        "import sys, tersor; print(*(m for m in sys.modules if m.startswith('tersor.') or m == 'torch'));"
        "tersor.Task; print('torch' in sys.modules, tersor.measure.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=True)
    assert done.stdout.splitlines() == ["", "True tersor.measure"]
