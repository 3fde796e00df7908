"""The limits that keep the package readable: lengths of files and functions, files in a folder, classes, names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tersor

PACKAGE = Path(tersor.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its ``def``, without those of its docstring."""
    count = span(node)
    return count if ast.get_docstring(node) is None else count - span(node.body[0])


def span(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Methods and nested functions too."""
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def bases(trees: list[ast.Module]) -> dict[str, set[str]]:
    """The names of the bases of each class; classes of one name count as one."""
    found: dict[str, set[str]] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            named = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
            own = found.setdefault(node.name, set())
            own |= {base.attr if isinstance(base, ast.Attribute) else ast.unparse(base) for base in named}
    return found


def depth(name: str, found: dict[str, set[str]]) -> int:
    """Classes of ``found`` in the longest line from this one to its root; bases of other packages do not count."""
    return 1 + max((depth(base, found) for base in found[name] if base in found), default=0)


def parsed() -> list[tuple[Path, ast.Module]]:
    return [(file, ast.parse(file.read_text(encoding="utf8"))) for file in FILES]


def test_files_have_at_most_300_lines():
    lengths = {str(f.relative_to(PACKAGE)): len(f.read_text(encoding="utf8").splitlines()) for f in FILES}
    assert len(lengths) > 150
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_functions_have_at_most_60_lines_without_docstring():
    found = [(str(file.relative_to(PACKAGE)), node) for file, tree in parsed() for node in functions(tree)]
    assert len(found) > 1000
    assert [(name, node.name, lines(node)) for name, node in found if lines(node) > 60] == []


def test_folders_have_at_most_20_files():
    folders = [f for f in (PACKAGE, *PACKAGE.rglob("*")) if f.is_dir() and f.name != "__pycache__"]
    counts = {str(f.relative_to(PACKAGE)): sum(file.is_file() for file in f.iterdir()) for f in folders}
    assert counts["."] > 3
    assert {name: count for name, count in counts.items() if count > 20} == {}


def test_classes_inherit_from_one_class_of_ours_at_most():
    found = bases([tree for _, tree in parsed()])
    assert depth("RecipeError", found) == 2
    assert {name for name in found if depth(name, found) > 2} == set()


def test_public_names_are_at_most_25():
    assert len(tersor.__all__) == len(set(tersor.__all__)) <= 25


@pytest.mark.parametrize(("body", "count"), [(59, 60), (60, 61)])
def test_a_docstring_is_no_line_of_a_function(body, count):
    text = '@decorated\ndef f(x):\n    """One.\n\n    Two.\n    """\n' + "    x += 1\n" * body
    assert [lines(node) for node in functions(ast.parse(text))] == [count]


def test_a_line_of_three_classes_is_found():
    texts = "class A(nn.Module): ...", "class B(a.A, Generic[T]): ...\nclass C(B[int]): ..."
    found = bases([ast.parse(text) for text in texts])
    assert [depth(name, found) for name in "ABC"] == [1, 2, 3]
