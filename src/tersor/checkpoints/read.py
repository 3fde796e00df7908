"""Read quantized weights back from saved files of any form: CHECKPOINTS, by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tersor.arguments import path_of
from tersor.checkpoints.network import read_weights as _network
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import CheckpointError
from tersor.numerics import QTensor
from tersor.packages import needing

Weights = Iterator[tuple[str, QTensor]]


@dataclass(frozen=True)
class Checkpoint:
    """One form of files.

    Args:
        pattern: the name of the file that identifies it in a folder.
        read: (name, QTensor) of every quantized weight of a folder.
    """

    pattern: str
    read: Callable[[Path], Weights]


def _layout(folder: Path) -> Weights:
    """A language model, in any entry of LAYOUTS."""
    found = QuantizedFolder(folder)
    for name in sorted(found.quantized):
        yield name, found.qtensor(name)


def _onnx(folder: Path) -> Weights:
    with needing(f"{folder}, which holds an ONNX file,", "onnx", kind=CheckpointError):
        from tersor.checkpoints.onnx.read import read_weights as read
    return read(folder)


def _gguf(folder: Path) -> Weights:
    from tersor.checkpoints.gguf.read import read_weights as read

    return read(folder)


CHECKPOINTS: dict[str, Checkpoint] = {
    "layout": Checkpoint("config.json", _layout),
    "network": Checkpoint("network.json", _network),
    "onnx": Checkpoint("model.onnx", _onnx),
    "gguf": Checkpoint("*.gguf", _gguf),
}


def read_weights(folder: str | Path) -> Weights:
    """(name, QTensor) of every quantized weight of a folder, one at a time; without executing or unpickling anything.

    Args:
        folder: written by ``compress`` (for torch, ONNX Runtime or TensorRT), by ``compress_folder`` or, in a layout of
            LAYOUTS, by another tool; or one that contains a GGUF file.

    Raises:
        CheckpointError, SavedFolderError: no such files, or one is missing or damaged.

    >>> next(read_weights("/nonexistent"))
    Traceback (most recent call last):
    tersor.errors.CheckpointError: /nonexistent holds no config.json, network.json, model.onnx, *.gguf: ...
    """
    folder = path_of("folder", folder, CheckpointError)
    for checkpoint in CHECKPOINTS.values():
        if any(folder.glob(checkpoint.pattern)):
            yield from checkpoint.read(folder)
            return
    patterns = ", ".join(c.pattern for c in CHECKPOINTS.values())
    raise CheckpointError(f"{folder} holds no {patterns}: give a folder that compress or compress_folder wrote")
