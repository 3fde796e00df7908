"""A folder in the Hugging Face layout (config.json and safetensors), read lazily, one tensor at a time."""

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tersor.checkpoints.architecture import TOKENIZER_FILES
from tersor.checkpoints.foreign.config import Held
from tersor.checkpoints.foreign.files import checked, inside, read_object
from tersor.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Files beside the weights that are copied to a compressed folder; docs/en/concepts/security.md lists them.
SIDE_FILES = frozenset(TOKENIZER_FILES) | {
    "tokenizer_config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "image_processor_config.json", "video_preprocessor_config.json", "README.md", "NOTICE", "NOTICE.txt", "NOTICE.md",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "USE_POLICY.md",
}  # fmt: skip
_WEIGHTS = (*(p[1:] for p in _PICKLES), ".safetensors", ".gguf", ".onnx", ".h5", ".msgpack")
# Values without meaning, at which readers of the file fail.
_SAYS_NOTHING = {"quantization_config": (None, {}), "torch_dtype": ("auto",), "dtype": ("auto",)}


class _Index(BaseModel):
    """The entries of INDEX that are read."""

    weight_map: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """A tensor's file, shape and dtype."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class HfFolder:
    """The tensors of a folder, read on demand and not cached.

    Attributes:
        path: the folder.
        config: the content of config.json, without ``"quantization_config": null`` and dtypes of ``"auto"``.
        entries: every tensor, by name.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the configuration and the headers of the shards, but no weights.

        Raises:
            CheckpointError: a file is missing, truncated or not safetensors; the message names it. Or there is an
                adapter (PEFT), which is not part of the folder's weights.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            hub = len(self.path.parts) == 2 and not self.path.parent.exists()
            remedy = f"; of a model on the Hugging Face Hub it is what `hf download {self.path}` prints" if hub else ""
            raise CheckpointError(f"{self.path} is not a folder: pass one with config.json and *.safetensors{remedy}")
        if adapter := next((name for name in _ADAPTERS if (self.path / name).is_file()), None):
            raise CheckpointError(
                f"{self.path} holds an adapter ({adapter}), which is not part of its base's weights: merge it into the "
                "base first (merge_and_unload() of PEFT, then save_pretrained), or remove its files"
            )
        config = _json(self._inside("config.json"), "a folder in the Hugging Face layout needs it")
        self.config = _without_empty_values(config)
        self.entries: dict[str, Entry] = {}
        for file in self._shards():
            with _opened(self._inside(file)) as shard:
                for name in shard.keys():  # noqa: SIM118 - no mapping
                    self.entries[name] = _entry(file, name, shard.get_slice(name), self.path)

    def _shards(self) -> list[str]:
        index = self._inside(INDEX)
        if self._inside(SINGLE).is_file():
            return [SINGLE]  # as in transformers; other files beside it contain the same weights
        if not index.is_file():
            files = sorted(p.name for p in self.path.glob("*.safetensors"))
            if files:
                return files
            pickles = sorted(p.name for pattern in _PICKLES for p in self.path.glob(pattern))
            hint = (
                f": {pickles[0]} is a pickle, which can run code; save it again with save_pretrained, which writes "
                "safetensors" if pickles else ": download the *.safetensors too"
            )
            raise CheckpointError(f"{self.path} holds no weights{hint}")
        content = _json(index, "")
        found = checked(_Index, content, f"{index} has no `weight_map` of names", CheckpointError, "download it again")
        files = sorted(set(found.weight_map.values()))
        missing = [f for f in files if not self._inside(f).is_file()]
        if missing:
            raise CheckpointError(
                f"{self.path} lacks {len(missing)} of its {len(files)} shards ({', '.join(missing[:3])}): download them"
            )
        if wrong := next((f for f in files if not f.endswith(".safetensors")), None):
            raise CheckpointError(
                f"{index} names {wrong}, which is no safetensors file: save the model again with save_pretrained"
            )
        return files

    def _inside(self, name: str) -> Path:
        return inside(self.path, name, CheckpointError)

    @property
    def held(self) -> Held:
        """The size of the weights, with which the sizes in config.json are compared."""
        return Held(len(self.entries), self.nbytes)

    @property
    def nbytes(self) -> int:
        """Total bytes of all tensors."""
        return sum(e.nbytes for e in self.entries.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype with the most bytes among the floating-point tensors."""
        bytes_of: dict[torch.dtype, int] = {}
        for e in self.entries.values():
            if e.dtype.is_floating_point:
                bytes_of[e.dtype] = bytes_of.get(e.dtype, 0) + e.nbytes
        return max(bytes_of, key=lambda d: bytes_of[d], default=torch.float32)

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) for each name, as a copy; a shard is open only while it is read.

        Raises:
            CheckpointError: a name is unknown, or a shard became unreadable.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            if name not in self.entries:
                raise CheckpointError(f"{self.path} has no tensor {name!r}: do the weights belong to its config.json?")
            by_file.setdefault(self.entries[name].file, []).append(name)
        for file, names_in_file in by_file.items():
            with _opened(self._inside(file)) as shard:
                for name in names_in_file:
                    # Without the copy, the mapped file's pages would stay in memory as long as the tensor.
                    yield name, shard.get_tensor(name).clone()

    def tensor(self, name: str) -> Tensor:
        """One tensor; raises as ``tensors`` does."""
        return next(self.tensors([name]))[1]

    def copy_to(self, folder: Path, own: Collection[str] = ()) -> None:
        """Copy weights, configuration, known side files and those of ``own`` to a folder; nothing else, no links."""
        names = {e.file for e in self.entries.values()} | {INDEX, "config.json", *SIDE_FILES, *own}
        for name in sorted(names):
            if (path := self._inside(name)).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)

    def others(self) -> tuple[list[Path], list[str]]:
        """The known side files (SIDE_FILES), and the names of the others, which are not copied to results."""
        weights = {e.file for e in self.entries.values()} | {INDEX, "config.json"}
        names = [p.name for p in sorted(self.path.iterdir()) if not p.name.startswith(".") and p.name not in weights]
        known = [n for n in names if n in SIDE_FILES]
        left = [n for n in names if n not in SIDE_FILES and not n.endswith(_WEIGHTS)]
        return [path for n in known if (path := self._inside(n)).is_file()], left


def _entry(file: str, name: str, part: Any, folder: Path) -> Entry:
    """A tensor's entry in the header of ``file``; safetensors has compared it with the file's length."""
    if part.get_dtype() not in _DTYPES:
        raise CheckpointError(f"{folder / file}: {name} has the dtype {part.get_dtype()}, which is not read")
    return Entry(file, tuple(part.get_shape()), _DTYPES[part.get_dtype()])


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): it is truncated or damaged; download it again"
        ) from error


def _without_empty_values(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_empty_values(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if value not in _SAYS_NOTHING.get(key, ())
    }


def _json(path: Path, why: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {why}")
    return read_object(path, CheckpointError, "download it again")
