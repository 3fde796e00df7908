"""Where a network runs. Engines are imported when used; one that is absent says how to install it."""

import importlib
from pathlib import Path
from typing import Any

from tersor.engines.base import Engine, Executed, NumbersCheck, Runner, check_numbers
from tersor.errors import EngineError

__all__ = [
    "ENGINES",
    "Engine",
    "Executed",
    "NumbersCheck",
    "Runner",
    "check_numbers",
    "engine",
    "load_runner",
]

# name: (module, the command that installs what it needs)
ENGINES: dict[str, tuple[str, str]] = {
    "openvino": ("tersor.engines.openvino", "pip install openvino"),
    "onnxruntime": ("tersor.engines.onnxruntime", 'pip install "tersor[onnx]"'),
    "torch": ("tersor.engines.torch", "pip install torch"),
    "tensorrt": ("tersor.engines.tensorrt", 'pip install "tersor[onnx]"'),
}


def engine(name: str) -> Engine:
    """The engine of that name, installed and ready.

    Raises:
        EngineError: an unknown name, or an engine that is not installed (with the pip command).

    >>> engine("torch").NAME
    'torch'
    """
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    module, command = ENGINES[name]
    found: Any = importlib.import_module(module)
    if found.version() is None:
        raise EngineError(f"the engine {name!r} is not installed; run: {command}")
    return found


def load_runner(name: str, folder: str, threads: int | None = None, precision: str = "f32") -> Runner:
    """A runner of an engine's files; also what the process that measures memory calls."""
    return engine(name).load(Path(folder), threads=threads, precision=precision)
