"""A network in ONNX Runtime, and its file."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.engines.base import Executed
from tersor.engines.inputs import Input, taken
from tersor.engines.options import threads_of
from tersor.errors import EngineError
from tersor.files import temporary_folder

FILES = ("model.onnx",)
# No options beyond those of a default session: the file contains everything it needs.
_PROVIDERS = ["CPUExecutionProvider"]
# Log errors only, since ONNX Runtime warns of every unused constant.
_SILENT = 3
# Its names of types that PyTorch calls otherwise.
_KINDS = {"float": "float32", "double": "float64"}
# Calls that are profiled, after one that is not.
_PROFILED = 15
_KERNEL = "_kernel_time"


def start(
    model: Any,
    threads: int,
    optimize: bool = True,
    optimized: str | None = None,
    waiting: bool = True,
    profile: str | None = None,
) -> Any:
    """A session of a model on the CPU.

    Args:
        optimized: the file into which the optimized graph is written, if any.
        waiting: whether its threads spin for the next call; False leaves the CPUs to others.
        profile: how the file starts into which the time of every operator is written, if any.

    Raises:
        EngineError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not waiting:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized:
        options.optimized_model_filepath = optimized
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    try:
        return _session(model, options)
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot load this network: {_summary(error)}") from error


class OnnxRuntimeRunner:
    """A network in ONNX Runtime, for any batch size that the network accepts.

    Args:
        model: the ONNX model (onnx.ModelProto).
        threads: threads per call; by default PyTorch's number of threads.
    """

    precision = "f32"
    optimize = True

    def __init__(self, model: Any, threads: int | None = None) -> None:
        self.model = model
        self.threads = threads_of(threads)
        self._session = self._start()
        self._inputs = tuple(map(_input, self._session.get_inputs()))

    def _start(self, optimized: str | None = None, profile: str | None = None) -> Any:
        return start(self.model, self.threads, self.optimize, optimized, profile=profile)

    def __call__(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        """Run the network on tensors or arrays; returns one tensor, or a tuple if there are several outputs.

        Raises:
            EngineError: an input has a shape or dtype that the network does not accept.
        """
        arrays = self._arrays(inputs)
        try:
            results = self._session.run(None, arrays)
        except Exception as error:
            shapes = [x.shape for x in arrays.values()]
            raise EngineError(f"ONNX Runtime refuses inputs of shapes {shapes}: {_summary(error)}") from error
        outputs = tuple(torch.from_numpy(np.asarray(r)) for r in results)
        return outputs[0] if len(outputs) == 1 else outputs

    def _arrays(self, inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
        tensors = taken(inputs, self._inputs)
        return {i.name: x.detach().contiguous().numpy() for i, x in zip(self._inputs, tensors, strict=True)}

    def times(self, *inputs: Tensor) -> dict[str, float]:
        """The median milliseconds of every operator in a call, from a profile of ONNX Runtime's."""
        with temporary_folder() as folder:
            session = self._start(profile=str(folder / "profile"))
            for _ in range(_PROFILED + 1):
                session.run(None, self._arrays(inputs))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf8"))
        found: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
                found.setdefault(event["name"].removesuffix(_KERNEL), []).append(event["dur"] / 1000)
        # The first call is none of those that are profiled.
        return {name: statistics.median(each[1:]) for name, each in found.items() if len(each) > 1}

    def executed(self) -> list[Executed]:
        """Every operator of the optimized graph, as ONNX Runtime exports it, with its precision."""
        import onnx

        from tersor.engines.onnxruntime.audit import account

        with temporary_folder() as folder:
            path = str(folder / "optimized.onnx")
            self._start(path)
            return account(self.model, onnx.load(path, load_external_data=False))

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the ONNX file into ``folder`` and return the file names."""
        from tersor.checkpoints.onnx.qdq import write_onnx

        return write_onnx(self.model, folder)


def _input(given: Any) -> Input:
    """An input as described by the session: ``tensor(float)`` is float32, other types have the same name in PyTorch."""
    kind = given.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in given.shape)
    return Input(given.name, str(_KINDS.get(kind, kind)), shape)


def read_model(folder: Path) -> Any:
    """The onnx.ModelProto written by ``OnnxRuntimeRunner.save``.

    Raises:
        EngineError: the file is missing or damaged.
    """
    import onnx

    try:
        return onnx.load(str(folder / FILES[0]))
    except Exception as error:
        raise EngineError(f"the ONNX file {folder / FILES[0]} cannot be read: {_summary(error)}") from error


def plain_session(folder: Path) -> Callable[..., tuple[Tensor, ...]]:
    """A session of the saved file with ONNX Runtime's defaults; raises EngineError if there is none."""
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        session = onnxruntime.InferenceSession(str(folder / FILES[0]), options, providers=_PROVIDERS)
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot load {folder / FILES[0]}: {_summary(error)}") from error
    names = [i.name for i in session.get_inputs()]

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = {n: x.detach().contiguous().numpy() for n, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(np.asarray(r)) for r in session.run(None, arrays))

    return call


def _session(model: Any, options: Any) -> Any:
    import onnxruntime

    from tersor.checkpoints.onnx.qdq import LIMIT, write_onnx

    if model.ByteSize() < LIMIT:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=_PROVIDERS)
    with temporary_folder() as folder:
        path = folder / write_onnx(model, folder)[0]
        return onnxruntime.InferenceSession(str(path), options, providers=_PROVIDERS)


def _summary(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]
