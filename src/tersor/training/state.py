"""The state of a training as one file, written whole or not at all, and read back bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tersor.errors import CheckpointError
from tersor.files import whole_file
from tersor.training.data import leaves_of

FILE = "training.safetensors"


def save(folder: Path, state: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write a nested state of tensors and plain values.

    Args:
        about: what identifies the training: a state of another one is refused by ``load``.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _flattened(state, "", tensors)
    text = json.dumps({"about": about, "state": skeleton})
    with whole_file(folder / FILE, CheckpointError) as path:
        save_file(tensors, path, {"training": text, "sum": _sum(text, tensors)})
    return folder / FILE


def check(state: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the state holds what cannot be saved."""
    _flattened(state, "", {})


def load(folder: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that was saved, or None if there is none.

    Raises:
        CheckpointError: the file is damaged, or of another training; naming what differs.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            text, wanted = (file.metadata()[key] for key in ("training", "sum"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if _sum(text, tensors) != wanted:
            raise ValueError("its checksum differs")
        data = json.loads(text)
        was, state = dict(data["about"]), _nested(data["state"], tensors)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({error}): remove it to train from the start") from error
    _check_about(path, was, json.loads(json.dumps(about)))
    return state


def _check_about(path: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [key for key in (*now, *(k for k in was if k not in now)) if was.get(key) != now.get(key)]
    if differing:
        key, more = differing[0], f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else ""
        one, other = (str(values[key])[:80] if key in values else "absent" for values in (was, now))
        raise CheckpointError(
            f"{path} belongs to another training: {key} was {one}, and is {other} now{more}; give another folder, or "
            "remove the file to train from the start"
        )


def _sum(text: str, tensors: Mapping[str, Tensor]) -> str:
    return digest({**tensors, "": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)})


def _flattened(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu").contiguous().clone()
        return {"tensor": path}
    if isinstance(value, Mapping):
        # Keys of an optimizer's state are numbers.
        return {"map": [[key, _flattened(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_flattened(item, f"{path}/{k}", tensors) for k, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"the state of a training holds a {type(value).__name__} at {path}, which cannot be saved")


def _nested(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "map":
        return {key: _nested(item, tensors) for key, item in inner}
    items = [_nested(item, tensors) for item in inner]
    return tuple(items) if kind == "tuple" else items


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of tensors by name."""
    import hashlib

    found = hashlib.sha256()
    for name in sorted(tensors):
        # A model's extra state may be anything.
        value = tensors[name] if isinstance(tensors[name], Tensor) else _text_of(tensors[name])
        data = value.detach().to("cpu").contiguous()
        found.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        found.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def digest_of(value: Any) -> str:
    """A short hash of a structure of tensors, arrays and plain values."""
    leaves = enumerate(leaves_of(value))
    tensors = {f"{k}": v if isinstance(v, Tensor) else _text_of(v) for k, v in leaves}
    return digest(tensors)


def _text_of(value: Any) -> Tensor:
    if isinstance(value, (np.ndarray, np.generic)):
        raw = value.tobytes()
    else:  # the text of another object may hold its address
        plain = value is None or isinstance(value, (bool, int, float, str))
        raw = f"{value if plain else type(value)}".encode()
    return torch.frombuffer(bytearray(raw or b" "), dtype=torch.uint8)
