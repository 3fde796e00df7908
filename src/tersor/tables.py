"""Tables of techniques by name: how an entry is requested with its options, checked, and created.

The options of a technique are the fields of its dataclass, defined nowhere else. ``gptq`` asks for the entry with its
defaults, ``{gptq: {damping: 0.02}}`` with explicit options.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any, get_args, get_type_hints

from tersor.errors import RecipeError, TersorError

Named = str | dict[str, dict[str, Any]]
"""The name of an entry, alone or as the one key of its options."""


def name_of(named: Named) -> str:
    """The name alone.

    >>> name_of({"gptq": {"damping": 0.02}})
    'gptq'
    """
    return named if isinstance(named, str) else next(iter(named))


def options_of(named: Named) -> dict[str, Any]:
    """The given options."""
    return {} if isinstance(named, str) else dict(named[name_of(named)])


def described(named: Named) -> str:
    """The name and its options in one line, for a plan.

    >>> described({"gptq": {"damping": 0.02}}), described("rtn")
    ('gptq (damping 0.02)', 'rtn')
    """
    options = ", ".join(f"{key} {value}" for key, value in options_of(named).items())
    return f"{name_of(named)} ({options})" if options else name_of(named)


def allowed(entry: Any, option: str) -> tuple[Any, ...]:
    """The values of an option whose type is a ``Literal``; empty for other types."""
    return tuple(a for a in get_args(_hints(_class(entry), False)[option]) if not isinstance(a, type))


def option_names(entry: Any) -> list[str]:
    """The options of an entry."""
    return [f.name for f in fields(_class(entry)) if f.init]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error: the most similar known name, or nothing.

    >>> nearest("gtpq", ["rtn", "gptq"])
    " (did you mean 'gptq'?)"
    """
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def found(table: Mapping[str, Any], name: str, what: str) -> Any:
    """The entry of that name.

    Raises:
        RecipeError: with the nearest name, and all names.
    """
    if name not in table:
        raise RecipeError(f"unknown {what} {name!r}{nearest(name, table)}; one of {', '.join(table)}")
    return table[name]


def parsed(value: Any, what: str) -> Named:
    """The value of a recipe key, as a name with its options.

    Raises:
        RecipeError: for any other form.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(name, str) and (options is None or isinstance(options, Mapping)):
            return {name: dict(options)} if options else name
    raise RecipeError(f"{what} {value!r} must be a name, or a name with its options such as {{name: {{option: 1}}}}")


def checked(table: Mapping[str, Any], named: Named, what: str) -> Named:
    """``named`` with its option values converted to their types; the name alone if there are none.

    Raises:
        RecipeError: for an entry, an option or a value that does not exist, with what is allowed; and for options that
            contradict each other.
    """
    name, entry = name_of(named), found(table, name_of(named), what)
    options = _validated(name, entry, options_of(named), what)
    made(table, {name: options}, what)
    return {name: options} if options else name


def made(table: Mapping[str, Any], named: Named, what: str, **defaults: Any) -> Any:
    """The entry with its options; ``defaults`` apply to an entry that has such options and does not set them.

    Entries are frozen dataclasses, or instances of them.

    Raises:
        RecipeError: as ``checked``.
    """
    name, entry = name_of(named), found(table, name_of(named), what)
    given = {key: value for key, value in defaults.items() if key in option_names(entry)}
    options = _validated(name, entry, given | options_of(named), what)
    try:
        return entry(**options) if isinstance(entry, type) else replace(entry, **options)
    except (TersorError, ValueError) as error:
        raise RecipeError(f"{what} {name}: {error}") from error


def _class(entry: Any) -> type:
    return entry if isinstance(entry, type) else type(entry)


@cache
def _hints(kind: type, constraints: bool) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=constraints)


@cache
def _adapter(kind: type, option: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(_hints(kind, True)[option])


def _validated(name: str, entry: Any, options: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not options:
        return {}
    from pydantic import ValidationError  # takes a while to import, and most entries have no options

    known = option_names(entry)
    values = {}
    for key, value in options.items():
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise RecipeError(f"{what} {name} has no option {key}={value!r}{nearest(str(key), known)}; {takes}")
        try:
            values[key] = _adapter(_class(entry), key).validate_python(value)
        except ValidationError as error:
            why = "; ".join(e["msg"] for e in error.errors())
            why += nearest(str(value), map(str, allowed(entry, key)))
            raise RecipeError(f"{what} {name}: option {key!r} is {value!r}: {why[0].lower()}{why[1:]}") from error
    return values
