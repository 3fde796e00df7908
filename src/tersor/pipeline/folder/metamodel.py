"""A Hugging Face model without its weights, and the mapping from the folder's tensors to its parameters."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tersor.checkpoints.architecture import build_model
from tersor.checkpoints.hf_folder import HfFolder
from tersor.errors import CheckpointError
from tersor.network.blocks.chain import Blocks, fill, find_blocks, move_buffers, parameters_on_meta
from tersor.network.blocks.experts import find_experts
from tersor.process import importing, logging_at


@dataclass(frozen=True)
class TensorSlice:
    """A tensor of the folder and the slice of a parameter that it is.

    Args:
        name: the tensor's name in the folder.
        parameter: the parameter's name in the model.
        index: the expert, if the parameter has three dimensions, or None.
        rows: the rows of that expert, or None for all.
        whole: whether the tensor equals that slice; otherwise it is transposed or combined with others.
    """

    name: str
    parameter: str
    index: int | None = None
    rows: slice | None = None
    whole: bool = True

    def part(self, parameter: Tensor) -> Tensor:
        """The slice as a view of the parameter."""
        matrix = parameter if self.index is None else parameter[self.index]
        return matrix if self.rows is None else matrix[self.rows]


@dataclass
class _Source:
    """The tensors of the folder that a parameter is loaded from, and transformers' converter, if any."""

    tensors: list[tuple[str, str | None]] = field(default_factory=list)
    converter: Any = None


class MetaModel:
    """The model of a folder, with parameters on the meta device until ``load`` reads them.

    Attributes:
        model: an instance of the class that config.json names, in evaluation mode.
        blocks: its repeated blocks.
        slices: every tensor of the folder that the model uses, by its name in the folder.
        unused: the names of the other tensors.
        untied: the parameters that the configuration ties to others, but the folder stores with their own values.
        experts: the experts of its blocks, and their routers.
        device: where ``load`` puts parameters, and where the buffers are.
    """

    def __init__(
        self, folder: HfFolder, build: Callable[[], nn.Module] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """Build the model and check its shapes against the folder's.

        Args:
            build: returns the model, for architectures that transformers does not know.
            device: where it will be computed.

        Raises:
            CaptureError: the architecture is unknown, or has no blocks.
            CheckpointError: tensors are missing, or their shapes differ from config.json.
        """
        self.folder, self.device = folder, torch.device(device)
        # transformers imports the model's class only now.
        with parameters_on_meta(), importing():
            built = build() if build else build_model(folder.config, folder.path, folder.held)
        self.model = built.eval().requires_grad_(False)
        self.blocks: Blocks = find_blocks(self.model)
        self._sources = _sources(self.model, folder)
        self.untied = self._untie()
        self.slices = {p.name: p for name in self._sources for p in self._tensor_slices(name)}
        self.unused = sorted(set(folder.entries) - set(self.slices))
        config = getattr(self.model, "config", None)
        known = config.to_dict() if hasattr(config, "to_dict") else {}  # type: ignore[union-attr]
        self.experts = find_experts(self.model, known, f"{self.blocks.path}.")
        self._check()
        move_buffers(self.model, self.device)

    def parameters(self, prefix: str) -> list[str]:
        """The names of the parameters of a module."""
        return [n for n in self._sources if n.startswith(prefix + ".")]

    def outside(self) -> list[str]:
        """The names of the parameters outside all blocks."""
        return [n for n in self._sources if not n.startswith(self.blocks.path + ".")]

    def load(self, names: Sequence[str], dtype: torch.dtype | None = None) -> None:
        """Read parameters into the model; floating-point ones are converted to ``dtype``."""
        for name in names:
            value = self.value(name)
            kind = dtype if dtype and value.is_floating_point() else value.dtype
            fill(self.model, {name: value.to(self.device, kind)})

    def value(self, name: str) -> Tensor:
        """Read one parameter, without caching."""
        source = self._sources[name]
        if source.converter is None:
            return self.folder.tensor(source.tensors[0][0])
        return self._convert(name, dict(self.folder.tensors([n for n, _ in source.tensors])))

    def _untie(self) -> list[str]:
        """Untie parameters for which the folder stores different values, as transformers does."""
        parted = []
        for first, *others in self._tied():
            stored = [name for name in others if name in self._sources and first in self._sources]
            for name in [n for n in stored if not _equal(self.value(first), self.value(n))]:
                owner, _, key = name.rpartition(".")
                own = nn.Parameter(self.model.get_parameter(name).detach().clone(), requires_grad=False)
                self.model.get_submodule(owner)._parameters[key] = own
                parted.append(name)
        return parted

    def _tied(self) -> Iterator[list[str]]:
        """The names of each parameter that has several; those that the folder stores come first."""
        names: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        yield from (sorted(n, key=lambda x: x not in self._sources) for n in names.values() if len(n) > 1)

    @property
    def tied_to(self) -> dict[str, str]:
        """The parameters that the folder does not store, by name, and the tensor of the one that they are tied to."""
        found = {}
        for names in self._tied():
            if names[0] in self._sources:
                tensor = self._sources[names[0]].tensors[0][0]
                found |= {name: tensor for name in names if name not in self._sources}
        return found

    @property
    def ties(self) -> bool:
        """Whether the folder stores a parameter once that has several names."""
        return bool(self.tied_to)

    def _convert(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        source = self._sources[name]
        converter = copy.deepcopy(source.converter)
        for key, pattern in source.tensors:
            converter.add_tensor(name, key, pattern, tensors[key])
        converted = converter.convert(name, model=self.model, config=getattr(self.model, "config", None))
        value = converted[name]
        return value[0] if isinstance(value, list) else value

    def _tensor_slices(self, name: str) -> Iterator[TensorSlice]:
        source = self._sources[name]
        if source.converter is None:
            yield TensorSlice(source.tensors[0][0], name)
            return
        # Convert tiny numbered tensors; their position in the result is that of the weights.
        sizes = {key: len(self.folder.entries[key].shape) for key, _ in source.tensors}
        if set(sizes.values()) != {2}:  # experts in one tensor, which the model may store transposed
            yield from (TensorSlice(key, name, whole=False) for key in sizes)
            return
        marks = {key: torch.arange(4).reshape(2, 2) + 4 * k for k, key in enumerate(sizes)}
        out = self._convert(name, marks)
        where = [_position(out, 4 * k) for k in range(len(marks))]
        for (key, _), place in zip(source.tensors, where, strict=True):
            if place is None:
                yield TensorSlice(key, name, whole=False)
                continue
            before = [
                other
                for (other, _), at in zip(source.tensors, where, strict=True)
                if at is not None and at[0] == place[0] and at[1] < place[1]
            ]
            start = sum(self.folder.entries[other].shape[0] for other in before)
            yield TensorSlice(key, name, place[0], slice(start, start + self.folder.entries[key].shape[0]))

    def _check(self) -> None:
        named = self.model.named_parameters(remove_duplicate=False)
        tied = {id(p) for n, p in named if n in self._sources}
        missing = [n for n, p in self.model.named_parameters() if n not in self._sources and id(p) not in tied]
        if missing:
            raise CheckpointError(
                f"{self.folder.path} lacks {len(missing)} weights that its config.json requires "
                f"({', '.join(missing[:3])}): download all of its shards"
            )
        for tensor_slice in self.slices.values():
            if not tensor_slice.whole:
                continue
            parameter = (
                self.model.get_parameter(tensor_slice.parameter)
                if _is_parameter(self.model, tensor_slice.parameter)
                else None
            )
            shape = self.folder.entries[tensor_slice.name].shape
            if parameter is not None and tuple(tensor_slice.part(parameter).shape) != shape:
                raise CheckpointError(
                    f"{tensor_slice.name} has shape {list(shape)} in {self.folder.path}, but its config.json requires "
                    f"{list(tensor_slice.part(parameter).shape)}: they belong to different models"
                )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _is_parameter(model: nn.Module, name: str) -> bool:
    owner, _, key = name.rpartition(".")
    return key in model.get_submodule(owner)._parameters


def _position(out: Tensor, first: int) -> tuple[int, int] | None:
    """(expert, row) at which a tensor's four numbers are found unchanged, or None."""
    if out.ndim != 3:
        return None
    matches = (out == first).nonzero()
    if len(matches) != 1:
        return None
    expert, row, column = matches[0].tolist()
    same = torch.equal(out[expert, row : row + 2, column : column + 2], torch.arange(4).reshape(2, 2) + first)
    return (expert, row) if same and column == 0 and out.shape[2] == 2 else None


def _sources(model: nn.Module, folder: HfFolder) -> dict[str, _Source]:
    """The source of each parameter, in the model's order."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    state = model.state_dict()
    mapping = get_model_conversion_mapping(model) if hasattr(model, "config") else []  # type: ignore[arg-type]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    renamings: Any = [m for m in mapping if not isinstance(m, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix = getattr(model, "base_model_prefix", None) or None
    sources: dict[str, _Source] = {}
    for name in sorted(folder.entries, key=_natural):
        key, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if key not in state:
            key, pattern = rename_source_key(name, [], [], prefix, state)
        if key in state:
            source = sources.setdefault(key, _Source(converter=by_pattern.get(pattern) if pattern else None))
            source.tensors.append((name, pattern))
    return {name: sources[name] for name in state if name in sources}


def _natural(name: str) -> list[tuple[int, Any]]:
    """Natural sort key: layer 2 before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loggers inside."""
    with logging_at(logging.ERROR, "transformers"):
        yield
