"""Join records of texts and conversations, from JSON files or Python objects, to one text for a tokenizer."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from tersor.errors import CheckpointError, TaskError

Message = Mapping[str, Any]
"""A message of a conversation: ``{"role": "user", "content": "..."}``, as chat templates expect."""

_RECORD = 'a record is {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
_FORMS = {
    ".jsonl": "write one record per line; use a .json file for a list of records",
    ".json": "write a list of records; use a .jsonl file for one record per line",
}
SUFFIXES = tuple(_FORMS)
_KEYS = ("text", "messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant"}
# A fixed date for templates that insert today's, so that a resumed run gets the same tokens.
_TODAY = date(2024, 7, 26)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file.

    Raises:
        TaskError: it cannot be read.
    """
    try:
        return path.read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as text ({error}): pass a UTF-8 text file") from error


def read_records(path: Path) -> list[tuple[str, Any]]:
    """Read the records of a .jsonl file (one per line, skipping empty lines) or a .json file (a list).

    Returns:
        The records, each with its location: the file, and its line or its number in the list, from 1.

    Raises:
        TaskError: the file cannot be read, is not JSON, or has no record.
    """
    text, suffix = read_text(path, "utf-8-sig"), path.suffix.lower()
    if not text.strip():
        raise TaskError(f"{path} is empty; {_RECORD}")
    if suffix == ".jsonl":
        # Not splitlines, since JSON may contain U+2028.
        lines = enumerate(text.split("\n"))
        return [(f"{path}, line {k + 1}", _parse(line, path, k)) for k, line in lines if line.strip()]
    records = _parse(text, path)
    if not isinstance(records, list) or not records:
        what = "an empty list" if records == [] else f"{_kind(records)}, not a list"
        raise TaskError(f"{path} holds {what}; {_FORMS['.json']}; {_RECORD}")
    return [(f"{path}, record {k}", record) for k, record in enumerate(records, 1)]


def join(records: Iterable[tuple[str, Any]], tokenizer: Any) -> str:
    r"""Join records to one text: texts separated by an empty line, conversations formatted by the chat template.

    Nothing is added around a conversation. If there is one, ``tokenizer`` is set to no longer split special tokens.

    Args:
        records: pairs of a location and a text, a list of messages, or a mapping with one of the keys ``text``,
            ``messages`` and ``conversations``; other keys are ignored. A message has ``role`` and ``content``, or
            ``from`` and ``value``.
        tokenizer: a transformers tokenizer; unused if all records are texts.

    Raises:
        TaskError: a record has another form, or the template rejects it.
        CheckpointError: there is a conversation, and the tokenizer has no chat template.

    >>> join([("line 1", "Once"), ("line 2", {"text": "upon"})], tokenizer=None)
    'Once\n\nupon'
    """
    parts: list[str] = []
    template, after_text = None, False
    for where, record in records:
        content = _content(record, where)
        if is_text := isinstance(content, str):
            parts.append(f"\n\n{content}" if after_text else content)
        else:
            if template is None:
                template = _template(tokenizer, where)
                tokenizer.split_special_tokens = False
            parts.append(_render(content, tokenizer, template, where))
        check_characters(parts[-1], where)
        after_text = is_text
    return "".join(parts)


def _parse(text: str, path: Path, before: int = 0) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise TaskError(f"{path}, line {before + 1}: nested too deeply; {_RECORD}") from error
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path}, line {before + error.lineno}: not JSON ({error.msg}, column {error.colno}); "
            f"{_FORMS[path.suffix.lower()]}; {_RECORD}"
        ) from error
    except ValueError as error:
        raise TaskError(f"{path}, line {before + 1} or after: {str(error)[:200]}; {_RECORD}") from error


def _content(record: Any, where: str) -> str | list[dict[str, Any]]:
    """The text or messages of a record."""
    if isinstance(record, Mapping):
        keys = [key for key in _KEYS if key in record]
        if len(keys) != 1:
            none = f"none of {', '.join(_KEYS)} but {', '.join(map(str, record)) or 'nothing'}"
            given = f"{' and '.join(keys)} at once" if keys else none
            raise TaskError(f"{where} has {given}; {_RECORD}; messages of one conversation are one list")
        record = record[keys[0]]
        if (keys[0] == "text") != isinstance(record, str):
            raise TaskError(f"{where}: {keys[0]!r} is {_kind(record)}; {_RECORD}")
    if isinstance(record, str):
        return record
    if not isinstance(record, Sequence) or not record:
        raise TaskError(f"{where} is {_kind(record)} without a message; {_RECORD}")
    return [_message(message, f"{where}, message {k}") for k, message in enumerate(record, 1)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if isinstance(message, Mapping) and "from" in message:
        role = str(message["from"])
        message = {"role": _ROLES.get(role, role), "content": message.get("value")}
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TaskError(f"{where} is {_kind(message)} without a role; {_RECORD}")
    if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
        raise TaskError(f"{where} has no content but {_kind(message.get('content'))}; {_RECORD}")
    return dict(message)


def _template(tokenizer: Any, where: str) -> str:
    try:
        template = tokenizer.get_chat_template()
    except (AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{where} is a conversation, and the tokenizer of {tokenizer.name_or_path} has no chat template: pass "
            'texts instead, {"text": "..."}, or copy the chat_template.jinja of the model there'
        ) from error
    call = r"""strftime_now\(\s*(["'])(.*?)\1\s*\)"""
    return re.sub(call, lambda match: repr(_TODAY.strftime(match[2])), template)


def _render(messages: list[dict[str, Any]], tokenizer: Any, template: str, where: str) -> str:
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        raise TaskError(
            f"{where}: the chat template of {tokenizer.name_or_path} refuses the roles "
            f"{', '.join(m['role'] for m in messages)} ({error}): change the messages, or pass them as a text"
        ) from error


def check_characters(text: str, where: str) -> None:
    """Reject lone surrogates; raises TaskError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(
            f"{where} contains half of a character, {text[error.start]!a}, which no tokenizer accepts: remove it"
        ) from error


def _kind(value: Any) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)
