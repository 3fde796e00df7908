"""What pruning made of a model's tensors, by name: to be saved without a pickle, and put into the model's own class."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tersor.checkpoints.destination import check_folder, put_in_place
from tersor.checkpoints.foreign.files import inside
from tersor.checkpoints.manifest import (
    FORMAT,
    MANIFEST,
    NARROWED,
    kind_of,
    read_language_manifest,
    sha256,
    verify,
)
from tersor.checkpoints.tensors import save_tensors
from tersor.errors import RecipeError, SavedFolderError
from tersor.files import working_folder, writing
from tersor.network.groups import Kept
from tersor.network.groups.check import lively
from tersor.network.network import CONVOLUTIONS, TRANSPOSED, Network, groups_of, op_name

TENSORS, CHECK = "model.safetensors", "check.safetensors"
_INPUT, _OUTPUT = "input ", "output "
Indices = dict[str, dict[int, list[int]]]
"""For each tensor that lost positions, and each dimension of it, those that were kept."""


Size = Annotated[int, Field(ge=1, lt=2**31)]


class Stored(BaseModel):
    """The manifest's entry ``pruning``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    kept: dict[str, dict[int, list[Annotated[int, Field(ge=0, lt=2**31)]]]]
    sizes: dict[str, tuple[Size, Annotated[int, Field(ge=0, lt=2**31)]]] = {}
    groups: dict[str, Size] = {}
    branches: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A pruned float network as changes of a model.

    Args:
        base: the hash of the model's names, shapes and dtypes before pruning, see ``fingerprint``.
        kept: what is left of each tensor.
        sizes: the number of parts before and after of each group that lost some, by the tensor that names it.
        groups: the number of groups of each convolution whose number changed, by its weight.
        branches: layers that went with a branch, became two or were rearranged, which the graph alone can do.
        tensors: all of them, as they are now.
        inputs, outputs: a lively example, and what the network computes of it.
        names: those of the inputs, if the model is called with keywords.
    """

    base: str
    kept: Indices
    sizes: dict[str, tuple[int, int]]
    groups: dict[str, int]
    branches: tuple[str, ...]
    tensors: dict[str, Tensor]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    names: tuple[str, ...] = field(default=())

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write ``manifest.json``, ``model.safetensors`` and ``check.safetensors`` into a new folder, atomically.

        Raises:
            SavedFolderError: the folder exists and ``force`` is not given, or cannot be written.
        """
        folder = check_folder(folder, force)
        with working_folder(folder) as parts, writing(folder):
            staging = parts / "out"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                self._write(staging)
                put_in_place(staging, folder, force)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return folder

    def _write(self, folder: Path) -> None:
        save_tensors({k: t.detach().contiguous() for k, t in self.tensors.items()}, folder / TENSORS)
        held = {f"{_INPUT}{k}": t for k, t in enumerate(self.inputs)}
        held |= {f"{_OUTPUT}{k}": t for k, t in enumerate(self.outputs)}
        save_tensors({k: t.contiguous().clone() for k, t in held.items()}, folder / CHECK)
        stored = Stored(
            base=self.base, kept=self.kept, sizes=self.sizes, groups=self.groups, branches=self.branches,
            names=self.names,
        )  # fmt: skip
        files = {name: {"sha256": sha256(folder / name), "shipped": True} for name in (TENSORS, CHECK)}
        manifest = {"format": FORMAT, "kind": NARROWED, "files": files, "pruning": stored.model_dump(mode="json")}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf8")

    @classmethod
    def load(cls, folder: str | Path) -> "Narrowed":
        """Read what ``save`` wrote.

        Raises:
            SavedFolderError: a file is missing, altered, or holds something else.
        """
        folder = Path(folder)
        if kind_of(folder) != NARROWED:
            raise SavedFolderError(f"{folder} holds no pruned model: pass a folder that Compressed.narrowed.save wrote")
        manifest = read_language_manifest(folder)
        verify(folder, manifest)
        try:
            stored = Stored.model_validate(manifest["pruning"])
            tensors, check = (load_file(inside(folder, name, SavedFolderError)) for name in (TENSORS, CHECK))
        except (OSError, KeyError, ValidationError, SafetensorError) as error:
            raise SavedFolderError(f"{folder} holds no pruned model that can be read: {error}") from error
        held = [
            tuple(check[f"{what}{k}"] for k in range(len(check)) if f"{what}{k}" in check) for what in (_INPUT, _OUTPUT)
        ]
        if not held[0] or len(stored.names) not in (0, len(held[0])):
            raise SavedFolderError(
                f"{folder} holds no pruned model that can be read: {CHECK} has {len(held[0])} inputs, and the manifest "
                f"names {len(stored.names)}"
            )
        return cls(
            stored.base, stored.kept, stored.sizes, stored.groups, stored.branches, tensors, *held, names=stored.names
        )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The hash of names, shapes and dtypes.

    >>> import torch
    >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.ones(2)})
    True
    """
    told = sorted(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors.items())
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def indices(kept: Kept) -> Indices:
    """What is left of each tensor of a structure that lost something."""
    found: Indices = {}
    for name, value in kept.structure.flow.tensors.items():
        for dim, cells in enumerate(value):
            mask = kept.mask(cells)
            if not mask.all():
                found.setdefault(name, {})[dim] = np.flatnonzero(mask).tolist()
    return found


def composed(first: Indices, second: Indices) -> Indices:
    """What is left when the second is taken from what the first left.

    >>> composed({"a": {0: [1, 3, 5]}}, {"a": {0: [0, 2]}, "b": {1: [0]}})
    {'a': {0: [1, 5]}, 'b': {1: [0]}}
    """
    found = {name: dict(dims) for name, dims in first.items()}
    for name, dims in second.items():
        for dim, left in dims.items():
            before = first.get(name, {}).get(dim)
            found.setdefault(name, {})[dim] = left if before is None else [before[k] for k in left]
    return found


def narrowed(source: Network, network: Network, prunings: tuple[Any, ...]) -> Narrowed:
    """What pruning and float training made of the network that was captured.

    Raises:
        RecipeError: no step pruned it.
    """
    if not prunings:
        raise RecipeError("nothing was pruned: the recipe has no step `prune`")
    kept: Indices = {}
    for record in prunings:
        kept = composed(kept, record.kept)
    before, after, own = _grouped(source), _grouped(network), dict(source.tensors())
    added = [name for name, _tensor in network.tensors() if name not in own]  # such as the order of a cut shuffle
    inputs = lively(network.example)
    out = network(*inputs)
    outputs = tuple(t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor))
    return Narrowed(
        base=fingerprint(own),
        kept=kept,
        sizes={w.tensor: (w.before, w.after) for r in prunings for w in r.widths if w.after < w.before},
        groups={name: count for name, count in after.items() if before.get(name) != count},
        branches=(*(name for r in prunings for name in (*r.branches, *(w.layers[0] for w in r.ranks))), *added),
        tensors=dict(network.tensors()),
        inputs=inputs,
        outputs=outputs,
        names=network.input_names if network.keywords else (),
    )


def _grouped(network: Network) -> dict[str, int]:
    """The number of groups of each convolution and GroupNorm, by its weight."""
    found = dict[str, int]()
    for node in network.operators():
        if node.target in (*CONVOLUTIONS, *TRANSPOSED):
            found[str(node.args[1].target)] = groups_of(node)  # type: ignore[union-attr]
        elif op_name(node) == "group_norm" and len(node.args) > 2 and hasattr(node.args[2], "target"):
            found[str(node.args[2].target)] = int(node.args[1])  # type: ignore[arg-type, union-attr]
    return found
