"""The table of engines, where networks run. Their libraries are imported when used."""

from pathlib import Path

from tersor.engines.base import Engine, Executed, Runner, require
from tersor.engines.onnxruntime import OnnxRuntime
from tersor.engines.openvino import OpenVINO
from tersor.engines.tensorrt import TensorRT
from tersor.engines.torch import Torch
from tersor.errors import EngineError

__all__ = [
    "ENGINES",
    "Engine",
    "Executed",
    "Runner",
    "automatic",
    "decoding",
    "engine",
    "load_runner",
    "simulation",
    "target_names",
]

ENGINES: dict[str, Engine] = {
    "openvino": OpenVINO(),
    "onnxruntime": OnnxRuntime(),
    "torch": Torch(),
    "tensorrt": TensorRT(),
}


def engine(name: str) -> Engine:
    """The engine of that name, installed and ready.

    Raises:
        EngineError: an unknown name, or an engine that is not installed (with the pip command).

    >>> engine("torch").simulates
    True
    """
    if name == "auto":
        raise EngineError(
            "the engine `auto` is chosen by measuring compressed networks, which there are none of here: name one of "
            f"{', '.join(ENGINES)}"
        )
    if not isinstance(name, str) or name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    require(ENGINES[name])
    return ENGINES[name]


def automatic() -> tuple[str, ...]:
    """The names of the engines that ``auto`` chooses from, in the order they are tried.

    >>> automatic()
    ('openvino', 'onnxruntime')
    """
    return tuple(name for name, found in ENGINES.items() if found.cheap)


def decoding() -> tuple[str, ...]:
    """The names of the engines that run language models: those with a decoder, then PyTorch, which runs all of them.

    >>> decoding()
    ('openvino', 'torch')
    """
    decoders = [name for name, found in ENGINES.items() if found.decoder is not None]
    return (*decoders, *(name for name, found in ENGINES.items() if found.runs_modules))


def simulation() -> Engine:
    """The engine that simulates every format."""
    return next(found for found in ENGINES.values() if found.simulates)


def target_names() -> tuple[str, ...]:
    """The names of the targets supported by any engine."""
    return tuple(dict.fromkeys(target.name for found in ENGINES.values() for target in found.targets))


def load_runner(name: str, folder: str, threads: int | None = None, precision: str = "f32") -> Runner:
    """A runner for an engine's files; the process that measures memory also calls it.

    Raises:
        EngineError: the engine is not installed, or its library cannot load the files.
        SavedFolderError: a file is damaged.
    """
    from tersor.checkpoints.foreign.files import foreign

    found = engine(name)
    with foreign(EngineError, f"{name} does not load the files of {folder}", "copy them again, or compress again"):
        return found.load(Path(folder), threads=threads, precision=precision)
