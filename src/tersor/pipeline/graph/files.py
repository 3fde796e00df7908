"""Run a saved network on NumPy files."""

from pathlib import Path

import numpy as np
from torch import Tensor

from tersor.checkpoints.destination import check_file
from tersor.checkpoints.foreign.files import read_array
from tersor.engines.inputs import check_finite, of_manifest
from tersor.errors import TaskError
from tersor.files import whole_file
from tersor.network.structure import tensor_of
from tersor.pipeline.compressed import Compressed


def run_files(network: Compressed, inputs: list[Path], output: Path, finite: bool = False) -> list[Path]:
    """Read one .npy file per input, run the network, write the outputs, and return their paths.

    Args:
        finite: reject inputs that contain NaN or infinity.

    Raises:
        EngineError: an input that the network does not accept, or with ``finite`` one that is not finite.
        TaskError: naming the input and its expected dtype or shape.
        SavedFolderError: an output cannot be written, by its path.
    """
    if len(inputs) != len(network.inputs):
        names = ", ".join(str(i["name"]) for i in network.inputs)
        raise TaskError(
            f"the network has {len(network.inputs)} inputs ({names}), {len(inputs)} files were given"
        )
    tensors = [_read(path, wanted) for path, wanted in zip(inputs, network.inputs, strict=True)]
    if finite:
        check_finite(tensors, of_manifest(network.inputs))
    signature = getattr(network.deployed, "signature", None)
    _paths(output, inputs, 1 if signature is None else signature.outputs.count)
    out = network.runner(*tensors)
    outputs = (out,) if isinstance(out, Tensor) else out
    paths = _paths(output, inputs, len(outputs))
    for path, value in zip(paths, outputs, strict=True):
        with whole_file(path) as part, part.open("wb") as file:
            np.save(file, value.numpy(), allow_pickle=False)
    return paths


def _paths(output: Path, inputs: list[Path], count: int) -> list[Path]:
    """The checked paths of the outputs; several are numbered."""
    several = [output.with_stem(f"{output.stem}_{k}") for k in range(count)]
    return [check_file(path, ".npy", sources=inputs) for path in ([output] if count == 1 else several)]


def _read(path: Path, wanted: dict) -> Tensor:
    array = read_array(path)
    name, dtype, shape = wanted["name"], wanted["dtype"], wanted["shape"]
    if str(array.dtype) != dtype:
        raise TaskError(
            f"{path}: input {name!r} is {dtype}, the file holds {array.dtype}; convert it with astype"
        )
    if array.ndim != len(shape) or any(
        w is not None and w != n for w, n in zip(shape, array.shape, strict=True)
    ):
        said = ["batch" if n is None else n for n in shape]
        raise TaskError(f"{path}: input {name!r} has the shape {said}, the file holds {list(array.shape)}")
    return tensor_of(array)
