"""A folder with quantized linear weights, in any of the layouts, read as if it were float."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tersor.checkpoints.foreign.files import foreign
from tersor.checkpoints.foreign.quantization import checked_config
from tersor.checkpoints.hf_folder import Entry, HfFolder
from tersor.checkpoints.layouts import layout_of
from tersor.checkpoints.sparse.layouts import sparsity_of
from tersor.errors import CheckpointError
from tersor.numerics import QTensor


class QuantizedFolder(HfFolder):
    """The entries are those of the float model; quantized weights are decoded on demand.

    Attributes:
        quantized: the names of the quantized weights.
        transposed: the quantized weights that the model stores as [in, out].
        layout: how they are stored.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the configuration and headers.

        Raises:
            CheckpointError: the folder is not quantized, has an unknown layout, or is incomplete.
        """
        super().__init__(path)
        if "quantization_config" not in self.config:
            raise CheckpointError(f"{self.path} is not quantized: its config.json has no quantization_config")
        if (sparse := sparsity_of(self.config)) is not None:
            raise CheckpointError(
                f"{self.path} holds float weights stored as {sparse}, none of them quantized: open it with tersor.load"
            )
        self._config = checked_config(self.config.pop("quantization_config"))
        self.layout = layout_of(self._config)
        self._files = dict(self.entries)
        self.quantized = self.layout.stored(self._files, self._config)
        self.transposed = {f"{n}.weight" for n in self._config.get("tersor_transposed", ())}
        parts = {n: [p for p in self._files if p.startswith(n.removesuffix("weight"))] for n in self.quantized}
        self._parts = {n: [p for p in stored if not p.endswith(".bias")] for n, stored in parts.items()}
        dtype = _dtype(self.config)
        for name, stored in self._parts.items():
            # Decoded for the shape only; the codes are decoded again on demand.
            shape = tuple(self.qtensor(name).shape)
            shape = shape[::-1] if name in self.transposed else shape
            file = self._files[stored[0]].file
            for part in stored:
                self.entries.pop(part, None)
            self.entries[name] = Entry(file, shape, dtype or self.dtype)

    def qtensor(self, name: str) -> QTensor:
        """The quantized weight, [out, in].

        Raises:
            CheckpointError: one of its tensors is missing or damaged.
        """
        reader = HfFolder.__new__(HfFolder)
        reader.path, reader.entries = self.path, self._files
        with foreign(CheckpointError, f"{name} of {self.path} does not fit its quantization_config"):
            return self.layout.decode(name, dict(reader.tensors(self._parts[name])), self._config)

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """As in any folder, with quantized weights dequantized."""
        for name in names:
            if name in self.quantized:
                value = self.qtensor(name).dequantize().to(self.entries[name].dtype)
                yield name, value.t().contiguous() if name in self.transposed else value
            else:
                yield from super().tensors([name])


def _dtype(config: dict) -> torch.dtype | None:
    name = config.get("dtype") or config.get("torch_dtype")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    return dtype if isinstance(dtype, torch.dtype) else None
