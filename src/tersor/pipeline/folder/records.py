"""Records of texts and conversations, as JSON files and Python objects hold them, made one text for a tokenizer."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from tersor.errors import CheckpointError, TaskError

Message = Mapping[str, Any]
"""What one says in a conversation: ``{"role": "user", "content": "..."}``, as chat templates take it."""

_RECORD = 'a record is {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
_FORMS = {
    ".jsonl": "write one record a line; a list of records goes into a .json file",
    ".json": "write a list of records; one record a line goes into a .jsonl file",
}
SUFFIXES = tuple(_FORMS)
_KEYS = ("text", "messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant"}
# Templates that write today's date would give other tokens tomorrow, also to a run that is taken up again.
_TODAY = date(2024, 7, 26)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A text file.

    Raises:
        TaskError: it cannot be read.
    """
    try:
        return path.read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as text ({error}); give a UTF-8 text file") from error


def read_records(path: Path) -> list[tuple[str, Any]]:
    """The records of a .jsonl file (one a line, empty lines are passed over) or a .json file (a list of them).

    Returns:
        Each with where it stands: the file, and its line or its number in the list, from 1.

    Raises:
        TaskError: the file cannot be read, is no JSON, or holds no record.
    """
    text, suffix = read_text(path, "utf-8-sig"), path.suffix.lower()
    if not text.strip():
        raise TaskError(f"{path} is empty; {_RECORD}")
    if suffix == ".jsonl":
        # Not splitlines: JSON may hold U+2028 as it is.
        lines = enumerate(text.split("\n"))
        return [(f"{path}, line {k + 1}", _parse(line, path, k)) for k, line in lines if line.strip()]
    found = _parse(text, path)
    if not isinstance(found, list) or not found:
        what = "an empty list" if found == [] else f"{_kind(found)} and no list"
        raise TaskError(f"{path} holds {what}; {_FORMS['.json']}; {_RECORD}")
    return [(f"{path}, record {k}", record) for k, record in enumerate(found, 1)]


def join(records: Iterable[tuple[str, Any]], tokenizer: Any) -> str:
    r"""One text of all: texts with an empty line between them, conversations as the tokenizer's chat template has them.

    Beside a conversation stands nothing but what the template writes. If there is one, ``tokenizer`` no longer splits
    special tokens.

    Args:
        records: where each stands, and a text, a list of messages, or a mapping with one of the keys ``text``,
            ``messages`` and ``conversations``; other keys are not read. A message has ``role`` and ``content``, or
            ``from`` and ``value``.
        tokenizer: one of transformers; not asked if all are texts.

    Raises:
        TaskError: a record that is none of these, or that the template refuses.
        CheckpointError: a conversation, and the tokenizer has no chat template.

    >>> join([("line 1", "Once"), ("line 2", {"text": "upon"})], tokenizer=None)
    'Once\n\nupon'
    """
    parts: list[str] = []
    template, after_text = None, False
    for where, record in records:
        said = _said(record, where)
        if is_text := isinstance(said, str):
            parts.append(f"\n\n{said}" if after_text else said)
        else:
            if template is None:
                template = _template(tokenizer, where)
                tokenizer.split_special_tokens = False
            parts.append(_written(said, tokenizer, template, where))
        _check_characters(parts[-1], where)
        after_text = is_text
    return "".join(parts)


def _parse(text: str, path: Path, before: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path}, line {before + error.lineno}: not JSON ({error.msg}, column {error.colno}); "
            f"{_FORMS[path.suffix.lower()]}; {_RECORD}"
        ) from error


def _said(record: Any, where: str) -> str | list[dict[str, Any]]:
    """The text, or the messages."""
    if isinstance(record, Mapping):
        keys = [key for key in _KEYS if key in record]
        if len(keys) != 1:
            none = f"none of {', '.join(_KEYS)} but {', '.join(map(str, record)) or 'nothing'}"
            found = f"{' and '.join(keys)} at once" if keys else none
            raise TaskError(f"{where} holds {found}; {_RECORD}; messages of one conversation are one list")
        record = record[keys[0]]
        if (keys[0] == "text") != isinstance(record, str):
            raise TaskError(f"{where}: {keys[0]!r} is {_kind(record)}; {_RECORD}")
    if isinstance(record, str):
        return record
    if not isinstance(record, Sequence) or not record:
        raise TaskError(f"{where} is {_kind(record)} without a message; {_RECORD}")
    return [_message(message, f"{where}, message {k}") for k, message in enumerate(record, 1)]


def _message(said: Any, where: str) -> dict[str, Any]:
    if isinstance(said, Mapping) and "from" in said:
        role = str(said["from"])
        said = {"role": _ROLES.get(role, role), "content": said.get("value")}
    if not isinstance(said, Mapping) or not isinstance(said.get("role"), str):
        raise TaskError(f"{where} is {_kind(said)} without a role; {_RECORD}")
    if not isinstance(said.get("content"), str | list) and not said.get("tool_calls"):
        raise TaskError(f"{where} says nothing: its content is {_kind(said.get('content'))}; {_RECORD}")
    return dict(said)


def _template(tokenizer: Any, where: str) -> str:
    try:
        template = tokenizer.get_chat_template()
    except (AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{where} is a conversation, and the tokenizer of {tokenizer.name_or_path} has no chat template; give "
            'texts instead, {"text": "..."}, or copy the chat_template.jinja of the model there'
        ) from error
    call = r"""strftime_now\(\s*(["'])(.*?)\1\s*\)"""
    return re.sub(call, lambda found: repr(_TODAY.strftime(found[2])), template)


def _written(messages: list[dict[str, Any]], tokenizer: Any, template: str, where: str) -> str:
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        raise TaskError(
            f"{where}: the chat template of {tokenizer.name_or_path} refuses the roles "
            f"{', '.join(m['role'] for m in messages)} ({error}); change the messages, or give them as a text"
        ) from error


def _check_characters(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(
            f"{where} holds half of a character, {text[error.start]!a}, which no tokenizer takes; leave it out"
        ) from error


def _kind(found: Any) -> str:
    """What something is, in the words of JSON."""
    if found is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(found), type(found).__name__)
