"""A network compiled by OpenVINO, and its files."""

import errno
import re
import shutil
import statistics
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.engines.base import Executed
from tersor.engines.inputs import Input, taken
from tersor.engines.openvino.audit import account
from tersor.engines.options import threads_of
from tersor.errors import EngineError
from tersor.files import whole_files

# The model's metadata key for the run-time group size: adjacent values of a token that share a scale.
GROUP_KEY = ["tersor", "runtime_group"]
# The same as a runtime option in the file, which any program that compiles the file follows.
GROUP_OPTION = ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
FILES = ("model.xml", "model.bin")
# Free bytes below which a failed write is attributed to a full disk.
_SCARCE = 2**20
# Calls that are profiled, after one that is not.
_PROFILED = 15


def compile_model(model: Any, threads: int, precision: str, options: dict[str, Any]) -> Any:
    """A model compiled for the CPU, with its threads and float arithmetic pinned, for one request at a time.

    Raises:
        EngineError: OpenVINO cannot compile the model.
    """
    import openvino as ov

    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        **options,
    }
    try:
        return ov.Core().compile_model(model, "CPU", options)
    except Exception as error:
        raise EngineError(f"OpenVINO cannot compile this network: {first_lines(error)}") from error


def _compile(model: Any, threads: int, precision: str, **options: Any) -> Any:
    group = int(model.get_rt_info(GROUP_KEY).astype(str)) if model.has_rt_info(GROUP_KEY) else 0
    # Affects products with compressed weights; OpenVINO's default is 32.
    return compile_model(model, threads, precision, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group, **options})


def first_lines(error: Exception) -> str:
    """The message of an OpenVINO error, in one line."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]


def _input(port: Any) -> Input:
    shape = (None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return Input(port.any_name, np.dtype(port.get_element_type().to_dtype()).name, tuple(shape))


class Requests:
    """A compiled model that several threads may call: each has its own request, which computes one call at a time."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._own = threading.local()

    def __call__(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The outputs for some inputs."""
        if not hasattr(self._own, "request"):
            self._own.request = self.compiled.create_infer_request()
        results = self._own.request.infer(arrays, share_inputs=True)
        return tuple(np.array(results[k]) for k in range(len(self.compiled.outputs)))


class OpenVINORunner:
    """A compiled network whose float arithmetic is pinned to one precision.

    A batch of 1 runs in a separate model with a fixed shape, which is faster; the model for all other
    batch sizes is compiled on first use.

    Args:
        model: an openvino.Model.
        threads: threads per call; by default PyTorch's number of threads.
        precision: the precision of float operators, ``f32`` or ``bf16``.
        notes: why the engine computes an operator in another precision than planned, by the operator's graph name.
    """

    def __init__(
        self,
        model: Any,
        threads: int | None = None,
        precision: str = "f32",
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.notes = notes or {}
        self.threads = threads_of(threads)
        self.precision = precision
        self._dynamic = all(
            p.partial_shape[0].is_dynamic for p in model.inputs if p.partial_shape.rank.get_length()
        )
        self._runtime = model.has_rt_info(GROUP_KEY)
        self._inputs = tuple(map(_input, model.inputs))
        self._compiled: dict[bool, Requests] = {}
        self._compiling = threading.Lock()
        self._for(single=self._dynamic)

    def _for(self, single: bool) -> Requests:
        with self._compiling:
            if single not in self._compiled:
                self._compiled[single] = Requests(_compile(self._shaped(single), self.threads, self.precision))
            return self._compiled[single]

    def _shaped(self, single: bool) -> Any:
        if not single:
            return self.model
        model = self.model.clone()
        shaped = [p for p in model.inputs if p.partial_shape.rank.get_length()]
        model.reshape({p: [1, *list(p.partial_shape)[1:]] for p in shaped})
        return model

    def __call__(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        """Run the network on tensors or arrays; returns one tensor, or a tuple if there are several outputs.

        Raises:
            EngineError: an input has a shape or dtype that the network does not accept.
        """
        inputs = taken(inputs, self._inputs)
        single = self._dynamic and all(x.shape[0] == 1 for x in inputs if x.ndim)
        compiled = self._for(single)
        arrays = [x.detach().contiguous().numpy() for x in inputs]
        try:
            results = compiled(arrays)
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise EngineError(f"OpenVINO refuses inputs of shapes {shapes}: {first_lines(error)}") from error
        outputs = tuple(map(torch.from_numpy, results))
        return outputs[0] if len(outputs) == 1 else outputs

    def executed(self) -> list[Executed]:
        """Every operator of the compiled model with its precision, as OpenVINO reports them.

        Operators that depend on no input are computed once during compilation and are omitted.
        """
        rows = account(self.model, self._for(self._dynamic).compiled.get_runtime_model(), self._runtime)
        notes = ([self.notes[n] for n in row.nodes if n in self.notes] for row in rows)
        return [replace(row, note=own[0]) if own else row for row, own in zip(rows, notes, strict=True)]

    def times(self, *inputs: Tensor) -> dict[str, float]:
        """The median milliseconds of every operator that runs in a call, as OpenVINO's counters report them."""
        model = self._shaped(self._dynamic)
        request = _compile(model, self.threads, self.precision, PERF_COUNT="YES").create_infer_request()
        arrays = [x.detach().contiguous().numpy() for x in taken(inputs, self._inputs)]
        found: dict[str, list[float]] = {}
        for call in range(_PROFILED + 1):
            request.infer(arrays)
            for row in request.get_profiling_info() if call else ():
                if row.status.name == "EXECUTED":
                    found.setdefault(row.node_name, []).append(row.real_time.total_seconds() * 1000)
        return {name: statistics.median(each) for name, each in found.items()}

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the model's files into ``folder`` and return their names."""
        return save_model(self.model, folder)


def save_model(model: Any, folder: Path) -> tuple[str, ...]:
    """Write a model's files into an existing folder and return their names."""
    import openvino as ov

    with whole_files(folder) as part:
        try:
            ov.save_model(model, part / FILES[0], compress_to_fp16=False)
        except RuntimeError as error:  # a C++ message, without errno
            full = shutil.disk_usage(part).free < _SCARCE
            words = "No space left on device" if full else f"OpenVINO: {first_lines(error)}"
            raise OSError(errno.ENOSPC if full else errno.EIO, words) from error
        # Remove the indentation, which is a third of the file.
        text = (part / FILES[0]).read_text(encoding="utf8")
        (part / FILES[0]).write_text(re.sub(r">\s+<", "><", text), encoding="utf8")
    return FILES


def read_model(folder: Path) -> Any:
    """The openvino.Model written by ``save_model``; raises EngineError if it cannot be read."""
    import openvino as ov

    try:
        return ov.Core().read_model(folder / FILES[0])
    except Exception as error:
        raise EngineError(f"OpenVINO cannot read {folder / FILES[0]}: {first_lines(error)}") from error


def plain_session(folder: Path) -> Callable[..., tuple[Tensor, ...]]:
    """The saved model, compiled by OpenVINO with its defaults; raises EngineError if that fails."""
    import openvino as ov

    try:
        compiled = Requests(ov.Core().compile_model(folder / FILES[0], "CPU"))
    except Exception as error:
        raise EngineError(f"OpenVINO cannot compile {folder / FILES[0]}: {first_lines(error)}") from error

    return lambda *inputs: tuple(map(torch.from_numpy, compiled([x.detach().contiguous().numpy() for x in inputs])))
