"""No call in the package runs or unpickles what a file holds: ruff's rules (S), and what they do not know."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import tersor

PACKAGE = Path(tersor.__file__).parent
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf8") for path in PACKAGE.rglob("*.py")}

# Modules that execute what they read, and functions that do; by the end of their dotted name.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code", "codeop", "pty"}
FUNCTIONS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnl", "jit.load", "hub.load",
    "export.load", "torch.save", "package.PackageImporter", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "read_pickle", "loader.exec_module", "copyreg.pickle", "ctypes.CDLL", "torch.ops.load_library",
    "register_extensions_library",
}  # fmt: skip
# An argument that a call must have, by the end of the function's name.
_NO_PICKLE = ("allow_pickle", False)
REQUIRED = {"torch.load": ("weights_only", True), "np.load": _NO_PICKLE, "np.save": _NO_PICKLE}
# Arguments that no call may have with another value.
FIXED = {"trust_remote_code": False, "shell": False, "allow_pickle": False, "weights_only": True}
# (file, call) that is what the user asked for: their own task file, which they name on the command line.
ALLOWED = {("cli/task_file.py", "spec.loader.exec_module")}


def found(name, text):
    """What a source must not have, as (file, line, words)."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            yield from ((name, node.lineno, m) for m in modules if m.partition(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        if (name, called) in ALLOWED:
            continue
        if any(called == f or ("." in f and called.endswith(f".{f}")) for f in FUNCTIONS):
            yield name, node.lineno, called
        for function, (argument, value) in REQUIRED.items():
            if called == function or called.endswith(f".{function}"):
                given = keywords.get(argument)
                if not (isinstance(given, ast.Constant) and given.value is value):
                    yield name, node.lineno, f"{called} without {argument}={value}"
        for argument, value in keywords.items():
            if argument in FIXED and not (isinstance(value, ast.Constant) and value.value is FIXED[argument]):
                yield name, node.lineno, f"{called} with {argument}={ast.unparse(value)}"


def test_nothing_in_the_package_runs_what_it_reads():
    assert len(SOURCES) > 250
    assert [line for name, text in SOURCES.items() for line in found(name, text)] == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "eval(x)", "torch.load(f)", "torch.load(f, weights_only=False)",
     "torch.load(f, weights_only=safe)", "np.load(f)", "AutoModel.from_pretrained(f, trust_remote_code=True)",
     "AutoConfig.from_pretrained(f, trust_remote_code=trusted)", "subprocess.run(x, shell=True)", "yaml.load(t)",
     "torch.jit.load(f)", "a.b.loader.exec_module(m)", "os.system(x)", "load(f, allow_pickle=True)"],
)  # fmt: skip
def test_it_is_found(text):
    assert list(found("x.py", text))


@pytest.mark.parametrize(
    "text",
    ["import json", "re.compile(x)", "runner.compile(n)", "model.eval()", "torch.load(f, weights_only=True)",
     "np.load(f, allow_pickle=False)", "f(trust_remote_code=False)", "yaml.safe_load(t)", "subprocess.run([x])"],
)  # fmt: skip
def test_what_is_harmless_passes(text):
    assert list(found("x.py", text)) == []


def test_bandits_rules_are_on_for_the_package_and_each_exception_has_its_line():
    lint = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf8"))["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert [rule for rule in lint["ignore"] if rule.startswith("S") and rule[1].isdigit()] == ["S101"]
    assert all("S" not in rules for files, rules in lint["per-file-ignores"].items() if "src" in files)
    lines = [(name, re.findall(r"noqa: (S\d+)", text)) for name, text in sorted(SOURCES.items())]
    assert [(name, rules) for name, rules in lines if rules] == [
        ("checkpoints/destination.py", ["S108"]),
        ("demo/llama.py", ["S311", "S106"]),
        ("files.py", ["S108"]),
        ("measure/memory/__init__.py", ["S603"]),
        ("report/shell.py", ["S704"]),
        ("report/svg.py", ["S704"]),
    ]
    assert not re.search(r"ruff: noqa|noqa\s*$", "\n".join(SOURCES.values()), re.MULTILINE)
