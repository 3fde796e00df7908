"""What messages advise exists: commands, options, parameters, keys of recipes, extras and methods that they name."""

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

import tersor
from tersor.cli import app
from tersor.recipe import Quantize, Recipe

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "src/tersor").rglob("*.py"))
# Other programs whose options messages quote.
FOREIGN = ("pip", "trtexec")


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a file, docstrings too; values inside an f-string become ``…``."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node)} - {id(node)}
            if id(node) not in inside:
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@cache
def everything() -> frozenset[str]:
    """All strings of the package."""
    return frozenset(text for file in FILES for text in texts(ast.parse(file.read_text(encoding="utf8"))))


def found(pattern: str) -> set:
    """The matches of a pattern in them."""
    return {match for text in everything() for match in re.findall(pattern, text)}


def commands(group=None, name="tersor") -> dict[str, set[str]]:
    """Every command with its options, by its words: ``tersor recipes show``."""
    group = group or typer.main.get_command(app)
    known = {name: {word for option in group.params for word in (*option.opts, *option.secondary_opts)}}
    for key, command in getattr(group, "commands", {}).items():
        known |= commands(command, f"{name} {key}")
    return known


def test_options_exist():
    known = {"--help"}.union(*commands().values())
    ours = [text for text in everything() if not any(program in text for program in FOREIGN)]
    named = {word for text in ours for word in re.findall(r"(?<![\w/.-])--[a-z][a-z0-9-]*\b", text)}
    assert len(named) > 8
    assert named - known == set()


def test_commands_exist_with_their_options():
    known = commands()
    for line in found(r"`(tersor(?: [^`…]*)?)`"):
        words = line.split()
        name = next(n for k in range(len(words), 0, -1) if (n := " ".join(words[:k])) in known)
        assert name != "tersor" or len(words) == 1 or words[1].startswith("-"), f"no command `{line}`"
        options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert options <= known[name] | {"--help"}, line


def parameters(name: str) -> set[str] | None:
    """The keywords that a public name of the package takes."""
    value = getattr(tersor, name, None)
    if value is Recipe:
        return {*Recipe.model_fields, *Quantize.model_fields, "base"}
    return set(inspect.signature(value).parameters) if callable(value) else None


def test_parameters_exist():
    calls = found(r"\b(?:tersor\.)?(\w+)\((\w+)=")
    checked = {(name, key) for name, key in calls if name in tersor.__all__}
    assert ("Task", "dynamic") in checked
    assert {(name, key) for name, key in checked if key not in (parameters(name) or {key})} == set()
    fields = found(r"\bTask\.(\w+)")
    assert fields - {"counted", *tersor.Task.__dataclass_fields__, *dir(tersor.Task)} == set()


def test_names_of_the_package_exist():
    for path in found(r"`{1,2}tersor\.([\w.]*\w)"):
        value = tersor
        for part in path.split("."):
            value = getattr(value, part, None) or importlib.import_module(f"{value.__name__}.{part}")


def test_keys_of_recipes_exist():
    known = 0
    for text in found(r"`(\w+: [^`…]+)`"):
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError:
            continue  # of no recipe, such as a signature
        if isinstance(data, dict) and set(data) & {*Quantize.model_fields}:
            Recipe.from_yaml(text)
            known += 1
    assert known > 3


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for group in found(r"tersor\[([\w,]+)\]") for extra in group.split(",")}
    assert named
    assert named - set(extras) == set()


@pytest.mark.parametrize(("text", "said"), [("f'a{b}c'", "a…c"), ("'plain'", "plain")])
def test_strings_are_found_whole(text, said):
    assert list(texts(ast.parse(text))) == [said]
