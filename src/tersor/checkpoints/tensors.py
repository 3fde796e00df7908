"""Write safetensors files with the permissions of any new file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from tersor.files import whole_file


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors; safetensors itself makes the file readable by its owner only.

    Raises:
        SavedFolderError: the file cannot be written. SafetensorError: tensors share memory.
    """
    with whole_file(path) as part:
        mode = part.stat().st_mode
        save_file(dict(tensors), part, None if metadata is None else dict(metadata))
        part.chmod(mode)
