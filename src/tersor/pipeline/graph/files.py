"""Run a saved network on NumPy files."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tersor.errors import TaskError
from tersor.files import whole_file
from tersor.pipeline.compressed import Compressed


def run_files(network: Compressed, inputs: list[Path], output: Path) -> list[Path]:
    """Read one .npy file per input, run the network, write the outputs, and return their paths.

    Raises:
        TaskError: naming the input and its expected dtype or shape.
    """
    if len(inputs) != len(network.inputs):
        names = ", ".join(str(i["name"]) for i in network.inputs)
        raise TaskError(
            f"the network has {len(network.inputs)} inputs ({names}), {len(inputs)} files were given"
        )
    tensors = [_read(path, wanted) for path, wanted in zip(inputs, network.inputs, strict=True)]
    out = network.runner(*tensors)
    outputs = (out,) if isinstance(out, Tensor) else out
    paths = (
        [output]
        if len(outputs) == 1
        else [output.with_stem(f"{output.stem}_{k}") for k in range(len(outputs))]
    )
    for path, value in zip(paths, outputs, strict=True):
        _write(path, value.numpy())
    return paths


def _read(path: Path, wanted: dict) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TaskError(
            f"{path} cannot be read as a .npy file ({error}); write it with numpy.save"
        ) from error
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
    return torch.from_numpy(np.ascontiguousarray(array))


def _write(path: Path, array: np.ndarray) -> None:
    """Write the file atomically."""
    with whole_file(path) as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)
