"""YAML of a recipe, read within bounds that are checked before any value is created."""

import re
from pathlib import Path
from typing import Any

import yaml

from tersor.errors import RecipeError

MAX_BYTES = 256 << 10
MAX_DEPTH = 32
MAX_ITEMS = 8_000
# Longer numbers are slow to convert; dates and base-60 numbers are written with digits, too.
_LONG_NUMBER = re.compile(r"[-+.0-9][-+.:0-9_a-fA-FoxX]{40,}")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OPENING, _CLOSING = (yaml.MappingStartEvent, yaml.SequenceStartEvent), (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def recipe_text(path: Path) -> str:
    """The text of a recipe's file.

    Raises:
        RecipeError: it cannot be read, is larger than MAX_BYTES, or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path} is no file: give the path of a .yaml file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(_too_large(str(path)))
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}): save the recipe as UTF-8") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read ({getattr(error, 'strerror', error)}): give another path") from error


def written(data: Any) -> str:
    r"""Data as YAML, in which letters of every language are readable, and those that act on a terminal escaped.

    >>> print(written({"name": "配方", "by": "a"}))
    name: 配方
    by: a
    <BLANKLINE>
    >>> written({"name": "a\u202eb"})
    'name: "a\\u202Eb"\n'
    """
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=116)
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return yaml.safe_dump(data, sort_keys=False, width=116)


def load_yaml(text: str, source: str) -> Any:
    """The value of a YAML text.

    Raises:
        RecipeError: it is not YAML, contains an impossible value, or exceeds MAX_BYTES, MAX_DEPTH or MAX_ITEMS, where
            values behind aliases count each time they are named.

    >>> load_yaml("a: [1, 2]", "recipe")
    {'a': [1, 2]}
    >>> load_yaml("a: &a [1]\\nb: &b [*a, *a]\\nc: *c", "recipe")
    Traceback (most recent call last):
    tersor.errors.RecipeError: recipe is not YAML: found undefined alias...
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(_too_large(source))
    try:
        _check_events(text, source)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _items(node, {}) > MAX_ITEMS:
            raise RecipeError(f"{source} has more than {MAX_ITEMS} values, those behind aliases included: shorten it")
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {str(error)[:500]}") from error
    except (ValueError, TypeError, OverflowError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise RecipeError(f"{source} holds a value that cannot be read: {str(error)[:200]}; correct it") from error


def _check_events(text: str, source: str) -> None:
    depth = count = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        count += isinstance(event, yaml.NodeEvent)
        if depth > MAX_DEPTH:
            raise RecipeError(f"{source} is nested more than {MAX_DEPTH} deep: write it flatter")
        if count > MAX_ITEMS:
            raise RecipeError(f"{source} has more than {MAX_ITEMS} values: shorten it")
        if isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.fullmatch(event.value):
            raise RecipeError(f"{source} has a number of {len(event.value)} digits ({event.value[:20]}…): shorten it")


def _items(node: Any, counted: dict[int, float]) -> float:
    """The number of values; those behind aliases count each time they are named, and a cycle is infinite."""
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = float("inf")
    value = node.value if isinstance(node.value, list) else []
    parts = [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
    counted[id(node)] = 1 + sum(_items(part, counted) for part in parts)
    return counted[id(node)]


def _too_large(source: str) -> str:
    return f"{source} is larger than {MAX_BYTES >> 10} KiB, more than is read of a recipe: shorten it"
