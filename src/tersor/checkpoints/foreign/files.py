"""Untrusted files: paths that stay inside their folder, and JSON and arrays within bounds."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from tersor.errors import TaskError, TersorError

MAX_BYTES = 64 << 20
MAX_DEPTH = 64
MAX_DIGITS = 40  # the model_max_length of many tokenizers has 31 digits
_STRING, _OTHER, _PAIR = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL), re.compile(rb"[^][{}]+"), re.compile(rb"\[\]|{}")
_Model = TypeVar("_Model", bound=BaseModel)


def inside(folder: Path, name: Any, error: type[TersorError]) -> Path:
    """The path of the file ``name`` of a folder, which may be missing.

    Links are not followed, with one exception: those of a snapshot in the Hugging Face cache, whose files are links to
    the ``blobs`` beside it.

    Raises:
        error: the name leads out of the folder, by ``..``, as an absolute path or by a link, or is not a regular file.

    >>> inside(Path("/models/x"), "../y.json", TersorError)
    Traceback (most recent call last):
    tersor.errors.TersorError: /models/x names the file '../y.json' outside its folder: do not trust it
    """
    outside = error(f"{folder} names the file {str(name)[:200]!r} outside its folder: do not trust it")
    if not isinstance(name, str) or not name or len(name) > 1000 or not name.isprintable() or "\\" in name:
        raise outside
    parts = PurePosixPath(name).parts
    if name.startswith("/") or not parts or ".." in parts or any(len(part.encode()) > 255 for part in parts):
        raise outside
    path = folder / name
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as cause:  # circular links
        raise outside from cause
    if real != root.joinpath(*parts) and not _is_blob(root, real):
        raise error(f"{path} is a link to {real}: links out of a folder are not followed; copy the file there instead")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise error(f"{path} is neither a file nor a folder: remove it")
    return path


def in_folder(path: Path, name: str, error: type[TersorError]) -> Path:
    """The file itself, or the file ``name`` of a folder; raises as ``inside`` does."""
    return inside(path, name, error) if path.is_dir() else path


def _is_blob(root: Path, real: Path) -> bool:
    """Whether ``real`` is a file of the repository in the Hugging Face cache of which ``root`` is a snapshot."""
    blobs = root.parent.parent / "blobs"
    return root.parent.name == "snapshots" and real.parent == blobs and not blobs.is_symlink()


def read_bytes(path: Path, error: type[TersorError], remedy: str, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        error: it cannot be read, or is larger than ``limit``.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise error(f"{path}: cannot be read (no regular file): {remedy}")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as cause:
        raise error(f"{path}: cannot be read ({getattr(cause, 'strerror', cause)}): {remedy}") from cause
    if len(content) > limit:
        raise error(f"{path} is larger than {limit >> 20} MiB, more than is read of such a file: {remedy}")
    return content


def read_json(path: Path, error: type[TersorError], remedy: str) -> Any:
    """The content of a JSON file of at most MAX_BYTES, nested at most MAX_DEPTH deep, integers of MAX_DIGITS digits.

    Raises:
        error: it is missing, not UTF-8, not JSON, or beyond these bounds.
    """
    return parse_json(read_bytes(path, error, remedy), str(path), error, remedy)


def parse_json(content: bytes, what: str, error: type[TersorError], remedy: str) -> Any:
    """The value of a JSON text; raises as ``read_json`` does, calling the text ``what``.

    >>> parse_json(b"[" * 100 + b"]" * 100, "it", TersorError, "get it again")
    Traceback (most recent call last):
    tersor.errors.TersorError: it is nested more than 64 deep: get it again
    """
    try:
        value = json.loads(content.decode("utf-8"), parse_int=_integer)
    except RecursionError as cause:
        raise error(f"{what} is nested more than {MAX_DEPTH} deep: {remedy}") from cause
    except ValueError as cause:
        raise error(f"{what} is not valid JSON ({str(cause)[:200]}): {remedy}") from cause
    brackets = _OTHER.sub(b"", _STRING.sub(b"", content))
    for _ in range(MAX_DEPTH):
        brackets = _PAIR.sub(b"", brackets)
    if brackets:
        raise error(f"{what} is nested more than {MAX_DEPTH} deep: {remedy}")
    return value


def read_object(path: Path, error: type[TersorError], remedy: str) -> dict[str, Any]:
    """A JSON file with an object; raises as ``read_json`` does, or if it contains anything else."""
    value = read_json(path, error, remedy)
    if not isinstance(value, dict):
        raise error(f"{path} does not hold a JSON object: {remedy}")
    return value


def checked(model: type[_Model], value: Any, what: str, error: type[TersorError], remedy: str) -> _Model:
    """The value, validated by ``model``.

    Raises:
        error: it does not fit; the message gives the first mismatch.
    """
    try:
        return model.model_validate(value)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step)[:80] for step in first["loc"])
        raise error(f"{what}: {where and f'{where}: '}{first['msg'][:300]}; {remedy}") from cause


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file, whose header is compared with its length before memory is allocated.

    Raises:
        TaskError: it is missing, truncated, contains Python objects, or is an archive (.npz).
    """
    with foreign(TaskError, f"{path} cannot be read as a .npy file", "write it with numpy.save"):
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in header:
                raise ValueError(f"version {version} is not read")
            shape, _, dtype = header[version](file)
            if dtype.hasobject:
                raise ValueError("it holds objects of Python")
            if math.prod(shape) * dtype.itemsize > path.stat().st_size - file.tell():
                raise ValueError(f"its header says {list(shape)} of {dtype}, more than the file holds")
            file.seek(0)
            return np.load(file, allow_pickle=False)


@contextmanager
def foreign(error: type[TersorError], what: str, remedy: str = "") -> Iterator[None]:
    """Convert whatever another library raises about a file into ``error``, with the first line of its message.

    Panics of Rust libraries are not an ``Exception``, so they are recognized by the module of their type.
    """
    try:
        yield
    except TersorError:
        raise
    except BaseException as cause:
        if not isinstance(cause, Exception) and type(cause).__module__ != "pyo3_runtime":
            raise
        raise error(f"{what} ({first_line(cause)})" + (remedy and f": {remedy}")) from cause


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:200]}"


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)
