"""A network compiled by OpenVINO, and its files."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.engines.base import Executed
from tersor.engines.openvino.audit import account
from tersor.errors import EngineError

# Where a model says how many neighbours of a token share a scale when it is quantized at run time.
GROUP_KEY = ["tersor", "runtime_group"]
FILES = ("model.xml", "model.bin")


def compile_model(model: Any, threads: int, precision: str, options: dict[str, Any]) -> Any:
    """A model compiled for the CPU, with its threads and float arithmetic pinned, for one request at a time.

    Raises:
        EngineError: where OpenVINO cannot compile it.
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


def _compile(model: Any, threads: int, precision: str) -> Any:
    group = int(model.get_rt_info(GROUP_KEY).astype(str)) if model.has_rt_info(GROUP_KEY) else 0
    # Heeded by products with compressed weights; left alone, it is 32.
    return compile_model(model, threads, precision, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group})


def first_lines(error: Exception) -> str:
    """What an error of OpenVINO says, in one line."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]


class OpenVINORunner:
    """A compiled network whose float arithmetic is pinned to one precision.

    A batch of 1 gets a model of its own fixed shape, which is faster; the model for all other batches is
    compiled when the first of them comes.

    Args:
        model: an openvino.Model.
        threads: of one call; by default as many as PyTorch uses.
        precision: what its float operators compute in, ``f32`` or ``bf16``.
        notes: by the graph names of our operators, why the engine computes them in another precision than planned.
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
        self.threads = threads or torch.get_num_threads()
        self.precision = precision
        self._dynamic = all(
            p.partial_shape[0].is_dynamic for p in model.inputs if p.partial_shape.rank.get_length()
        )
        self._runtime = model.has_rt_info(GROUP_KEY)
        self._compiled: dict[bool, Any] = {}
        self._for(single=self._dynamic)

    def _for(self, single: bool) -> Any:
        if single not in self._compiled:
            model = self.model
            if single:
                model = model.clone()
                model.reshape(
                    {
                        p: [1, *list(p.partial_shape)[1:]]
                        for p in model.inputs
                        if p.partial_shape.rank.get_length()
                    }
                )
            self._compiled[single] = _compile(model, self.threads, self.precision)
        return self._compiled[single]

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the network on tensors; one tensor comes back, or a tuple where there are several outputs.

        Raises:
            EngineError: where an input has another shape or dtype than the network takes.
        """
        single = self._dynamic and all(x.shape[0] == 1 for x in inputs if x.ndim)
        compiled = self._for(single)
        arrays = [x.detach().contiguous().numpy() for x in inputs]
        try:
            results = compiled(arrays, share_inputs=True)
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise EngineError(f"OpenVINO refuses inputs of shapes {shapes}: {first_lines(error)}") from error
        outputs = tuple(torch.from_numpy(np.array(results[k])) for k in range(len(compiled.outputs)))
        return outputs[0] if len(outputs) == 1 else outputs

    def executed(self) -> list[Executed]:
        """Every operator of the compiled model with the precision it runs in, by OpenVINO's own account.

        What depends on no input is computed once while compiling and is left out.
        """
        rows = account(self.model, self._for(self._dynamic).get_runtime_model(), self._runtime)
        return [replace(row, note=next((self.notes[n] for n in row.nodes if n in self.notes), None)) for row in rows]

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the model's own files into ``folder``; their names are returned."""
        return save_model(self.model, folder)


def save_model(model: Any, folder: Path) -> tuple[str, ...]:
    """Write a model's files into an existing folder; their names are returned."""
    import openvino as ov

    ov.save_model(model, folder / FILES[0], compress_to_fp16=False)
    # A third of the file is indentation.
    text = (folder / FILES[0]).read_text(encoding="utf8")
    (folder / FILES[0]).write_text(re.sub(r">\s+<", "><", text), encoding="utf8")
    return FILES


def read_model(folder: Path) -> Any:
    """The openvino.Model that ``save_model`` wrote; EngineError where it cannot be read."""
    import openvino as ov

    try:
        return ov.Core().read_model(folder / FILES[0])
    except Exception as error:
        raise EngineError(f"OpenVINO cannot read {folder / FILES[0]}: {first_lines(error)}") from error
