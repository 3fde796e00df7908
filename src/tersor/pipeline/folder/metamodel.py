"""A Hugging Face model without its weights, and where each tensor of the folder belongs in it."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tersor.checkpoints.hf_folder import HfFolder
from tersor.errors import CaptureError, CheckpointError, EngineError
from tersor.network.blocks.chain import Blocks, fill, find_blocks, parameters_on_meta
from tersor.process import importing, logging_at


@dataclass(frozen=True)
class TensorSlice:
    """A tensor of the folder, and the part of a parameter that it is.

    Args:
        name: in the folder.
        parameter: of the model.
        index: the expert, where the parameter has three dimensions.
        rows: of that expert; None: all.
        whole: the tensor is that part as it stands; else it is turned or mixed with others on the way.
    """

    name: str
    parameter: str
    index: int | None = None
    rows: slice | None = None
    whole: bool = True

    def part(self, parameter: Tensor) -> Tensor:
        """Its view of the parameter."""
        part = parameter if self.index is None else parameter[self.index]
        return part if self.rows is None else part[self.rows]


@dataclass
class _Source:
    """What a parameter is made of: tensors of the folder, through a converter of transformers where there is one."""

    tensors: list[tuple[str, str | None]] = field(default_factory=list)
    converter: Any = None


class MetaModel:
    """The model of a folder, its parameters without storage until ``load`` is asked for some of them.

    Attributes:
        model: of the class that config.json names, in evaluation mode.
        blocks: its repeated part.
        pieces: every tensor of the folder that the model has a place for, by its name in the folder.
        unused: the names of the others.
    """

    def __init__(self, folder: HfFolder, build: Callable[[], nn.Module] | None = None) -> None:
        """Build the model and hold its shapes against those of the folder.

        Args:
            build: makes the model where transformers does not know its architecture.

        Raises:
            CaptureError: an unknown architecture, or no blocks.
            CheckpointError: tensors that are missing, or of another shape than config.json says.
        """
        self.folder = folder
        # transformers imports the class of the model only now.
        with parameters_on_meta(), importing():
            self.model = (build() if build else _built(folder)).eval().requires_grad_(False)
        self.blocks: Blocks = find_blocks(self.model)
        self._sources = _sources(self.model, folder)
        self.slices = {p.name: p for name in self._sources for p in self._tensor_slices(name)}
        self.unused = sorted(set(folder.entries) - set(self.slices))
        self._check()

    def parameters(self, prefix: str) -> list[str]:
        """The names of the parameters of a module."""
        return [n for n in self._sources if n.startswith(prefix + ".")]

    def outside(self) -> list[str]:
        """The names of the parameters that lie in no block."""
        return [n for n in self._sources if not n.startswith(self.blocks.path + ".")]

    def load(self, names: Sequence[str], dtype: torch.dtype | None = None) -> None:
        """Read parameters into the model, in ``dtype`` where they are floating-point."""
        for name in names:
            value = self.value(name)
            fill(self.model, {name: value.to(dtype) if dtype and value.is_floating_point() else value})

    def value(self, name: str) -> Tensor:
        """One parameter, read and not kept."""
        source = self._sources[name]
        if source.converter is None:
            return self.folder.tensor(source.tensors[0][0])
        return self._converted(name, dict(self.folder.tensors([n for n, _ in source.tensors])))

    def _converted(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        source = self._sources[name]
        converter = copy.deepcopy(source.converter)
        for key, pattern in source.tensors:
            converter.add_tensor(name, key, pattern, tensors[key])
        found = converter.convert(name, model=self.model, config=getattr(self.model, "config", None))
        value = found[name]
        return value[0] if isinstance(value, list) else value

    def _tensor_slices(self, name: str) -> Iterator[TensorSlice]:
        source = self._sources[name]
        if source.converter is None:
            yield TensorSlice(source.tensors[0][0], name)
            return
        # Tiny tensors of numbers go through the converter; where they come out is where the weights do.
        marks = {key: torch.arange(4).reshape(2, 2) + 4 * k for k, (key, _) in enumerate(source.tensors)}
        out = self._converted(name, marks)
        where = [_place(out, 4 * k) for k in range(len(marks))]
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
        tied = {id(p) for n, p in self.model.named_parameters() if n in self._sources}
        lacking = [n for n, p in self.model.named_parameters() if n not in self._sources and id(p) not in tied]
        if lacking:
            raise CheckpointError(
                f"{self.folder.path} lacks {len(lacking)} weights that its config.json asks for: "
                f"{', '.join(lacking[:3])}; download all of its shards"
            )
        for tensor_slice in self.slices.values():
            if not tensor_slice.whole:
                continue
            own = (
                self.model.get_parameter(tensor_slice.parameter)
                if _is_parameter(self.model, tensor_slice.parameter)
                else None
            )
            shape = self.folder.entries[tensor_slice.name].shape
            if own is not None and tuple(tensor_slice.part(own).shape) != shape:
                raise CheckpointError(
                    f"{tensor_slice.name} has the shape {list(shape)} in {self.folder.path}, and by its config.json "
                    f"{list(tensor_slice.part(own).shape)}; the two belong to different models"
                )


def _is_parameter(model: nn.Module, name: str) -> bool:
    owner, _, key = name.rpartition(".")
    return key in model.get_submodule(owner)._parameters


def _place(out: Tensor, first: int) -> tuple[int, int] | None:
    """(expert, row) at which a piece's four numbers stand as they were; None where they do not."""
    if out.ndim != 3:
        return None
    found = (out == first).nonzero()
    if len(found) != 1:
        return None
    expert, row, column = found[0].tolist()
    same = torch.equal(out[expert, row : row + 2, column : column + 2], torch.arange(4).reshape(2, 2) + first)
    return (expert, row) if same and column == 0 and out.shape[2] == 2 else None


def _built(folder: HfFolder) -> nn.Module:
    transformers = import_transformers()
    config = folder.config
    kind = config.get("model_type")
    if "auto_map" in config and kind not in transformers.CONFIG_MAPPING:
        raise CaptureError(
            f"{folder.path} brings its own Python code for the architecture {kind!r}, which is not executed; give "
            "`build=`, a function that makes the model"
        )
    if kind not in transformers.CONFIG_MAPPING:
        raise CaptureError(
            f"transformers {transformers.__version__} knows no architecture {kind!r} (`model_type` in config.json of "
            f"{folder.path}); install a newer one, or give `build=`, a function that makes the model"
        )
    try:
        loaded = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True)
        # Experts as a loop over plain products: what each of them reads can be seen.
        loaded._experts_implementation = "eager"
        for name in config.get("architectures") or ():
            if hasattr(transformers, name):
                return getattr(transformers, name)._from_config(loaded, attn_implementation="sdpa")
        return transformers.AutoModel.from_config(loaded)
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise CaptureError(f"the config.json of {folder.path} describes no model: {error}") from error


def import_transformers() -> Any:
    """The package.

    Raises:
        EngineError: it is not installed.
    """
    try:
        with importing():
            import transformers
    except ImportError as error:
        raise EngineError("Hugging Face folders need transformers: pip install 'tersor[transformers]'") from error
    return transformers


def _sources(model: nn.Module, folder: HfFolder) -> dict[str, _Source]:
    """What each parameter of the model is made of, in the model's order."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    state = model.state_dict()
    mapping = get_model_conversion_mapping(model) if hasattr(model, "config") else []  # type: ignore[arg-type]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    renamings: Any = [m for m in mapping if not isinstance(m, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix = getattr(model, "base_model_prefix", None) or None
    found: dict[str, _Source] = {}
    for name in sorted(folder.entries, key=_natural):
        key, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if key not in state:
            key, pattern = rename_source_key(name, [], [], prefix, state)
        if key in state:
            source = found.setdefault(key, _Source(converter=by_pattern.get(pattern) if pattern else None))
            source.tensors.append((name, pattern))
    return {name: found[name] for name in state if name in found}


def _natural(name: str) -> list[tuple[int, Any]]:
    """Layer 2 before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' loggers say nothing while inside."""
    with logging_at(logging.ERROR, "transformers"):
        yield
