"""A folder whose float weights are stored without their zeros, read as if it held them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from tersor.checkpoints.foreign.files import foreign
from tersor.checkpoints.foreign.quantization import checked_config
from tersor.checkpoints.hf_folder import Entry, HfFolder
from tersor.checkpoints.sparse.layouts import KEY, SPARSE_LAYOUTS, sizes_of, sparsity_of
from tersor.errors import CheckpointError


class SparseFolder(HfFolder):
    """The entries are those of the dense model; sparse weights are decoded on demand.

    Attributes:
        layout: how they are stored.
        sparse: their names.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the configuration, headers and shapes.

        Raises:
            CheckpointError: the folder has no sparse layout, is quantized too, or a weight is damaged.
        """
        super().__init__(path)
        layout = sparsity_of(self.config)
        if layout is None:
            raise CheckpointError(f"{self.path} has no {KEY} of {', '.join(SPARSE_LAYOUTS)} in its config.json")
        config = checked_config(self.config.pop("quantization_config"))
        if config.get("config_groups"):
            raise CheckpointError(
                f"{self.path} is quantized and stored as {layout} at once, which is not read: quantize the original"
            )
        self.layout = SPARSE_LAYOUTS[layout]
        self._files = dict(self.entries)
        layers = [n.removesuffix(".bitmask") for n in self._files if n.endswith(".bitmask")]
        self.sparse = {f"{layer}.weight" for layer in layers}
        for layer in layers:
            self._decoded(layer)

    def _decoded(self, layer: str) -> None:
        """Replace the entries of a weight's tensors by its own."""
        name, parts = f"{layer}.weight", [f"{layer}.{suffix}" for suffix in self.layout.suffixes]
        if missing := next((part for part in parts if part not in self._files), None):
            raise CheckpointError(f"{missing}, part of the sparse {name}, is missing: download the folder again")
        shape = next(super().tensors([f"{layer}.shape"]))[1] if self._small(f"{layer}.shape") else None
        values, mask = self._files[f"{layer}.compressed"], self._files[f"{layer}.bitmask"]
        rows, columns = (0, 0) if shape is None else sizes_of(name, shape)
        if shape is None or mask.shape != (rows, -(-columns // 8)) or not values.dtype.is_floating_point:
            raise CheckpointError(
                f"{name}: its shape does not match its bitmask {list(mask.shape)}, or its values are no floats: the "
                "file is damaged, download it again"
            )
        for part in parts:
            self.entries.pop(part)
        self.entries[name] = Entry(values.file, (rows, columns), values.dtype)

    def _small(self, name: str) -> bool:
        return sum(self._files[name].shape) <= 3

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """As in any folder, with zeros filled in."""
        reader = HfFolder.__new__(HfFolder)
        reader.path, reader.entries = self.path, self._files
        for name in names:
            if name not in self.sparse:
                yield from super().tensors([name])
                continue
            parts = [f"{name.removesuffix('.weight')}.{suffix}" for suffix in self.layout.suffixes]
            with foreign(CheckpointError, f"{name} of {self.path} does not fit its {KEY}"):
                yield name, self.layout.decode(name, dict(reader.tensors(parts)))
