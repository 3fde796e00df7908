"""Load a compressed folder as a model that generates, in PyTorch or in an engine with a decoder."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from tersor.checkpoints.architecture import generation_config
from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.manifest import LANGUAGE, MANIFEST, kind_of, read_language_manifest, verify
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.checkpoints.sparse.folder import SparseFolder
from tersor.checkpoints.sparse.layouts import sparsity_of
from tersor.engines import ENGINES, Engine, decoding
from tersor.errors import CaptureError, CheckpointError, EngineError
from tersor.network.quantized import QuantizedLinear, QuantizedWeight
from tersor.network.swap import weighted_modules
from tersor.numerics import QTensor
from tersor.pipeline.folder.metamodel import MetaModel, quiet
from tersor.words import said


def is_language(folder: Path) -> bool:
    """Whether a folder is in the Hugging Face layout, written by Tersor or others."""
    if (folder / MANIFEST).is_file():
        return kind_of(folder) == LANGUAGE
    return os.path.lexists(folder / "config.json")  # also if it is one that cannot be read, which HfFolder reports


class LanguageModel(NamedTuple):
    """A model with ``generate``, the name of its engine, and why one before did not support it, or None."""

    model: Any
    engine: str
    why_not: str | None


def load_language(
    folder: Path, engine: str | None = None, threads: int | None = None, precision: str = "f32"
) -> LanguageModel:
    """Load a model with ``generate``.

    Args:
        folder: a folder that ``compress_folder`` wrote, one from another tool in the layout of compressed-tensors, GPTQ
            or AWQ, or an unquantized one.
        engine: None: PyTorch, the transformers class that config.json names, with quantized linear layers; the name of
            an engine with a decoder; ``auto``: the first of ``tersor.engines.decoding()`` that supports the model.
        precision: of a decoder's float operators; in torch it is the folder's own dtype.

    Raises:
        SavedFolderError: a file of the folder is missing or altered.
        CheckpointError: a file is missing, truncated or damaged.
        EngineError: the engine has no decoder, is not installed, or cannot compile the model; or a precision for torch.
        CaptureError: the architecture is unknown, or the engine needs a graph and torch.export fails.
    """
    tried, why_not = candidates(engine), None
    if precision != "f32" and tried[0].decoder is None:
        raise EngineError(
            f"in {tried[0].name} a language model computes in its own dtype, not in {precision}; choose an engine "
            f"with a decoder: {', '.join(n for n in decoding() if ENGINES[n].decoder is not None)}"
        )
    check_sums(folder)
    with quiet():
        for candidate in tried[:-1]:
            try:
                return LanguageModel(_in_engine(candidate, folder, threads, precision), candidate.name, why_not)
            except (EngineError, CaptureError) as error:
                why_not = said(
                    "{engine} does not support this model: {reason}",
                    engine=candidate.name, reason=str(error.args[0]).splitlines()[0],
                )
        last = tried[-1]
        return LanguageModel(_in_engine(last, folder, threads, precision), last.name, why_not)


def candidates(engine: str | None) -> list[Engine]:
    """The engines to try; the last one's errors are raised."""
    names = decoding()
    if engine is None:
        return [ENGINES[name] for name in names if ENGINES[name].runs_modules]
    if engine == "auto":
        return [ENGINES[name] for name in names]
    if engine not in names:
        raise EngineError(f"engine {engine!r} does not run language models: choose {', '.join(names)} or auto")
    return [ENGINES[engine]]


def _in_engine(engine: Engine, folder: Path, threads: int | None, precision: str) -> Any:
    """The folder's model in one engine, from its own MetaModel, since a traced one cannot be reused."""
    metamodel = MetaModel(open_folder(folder))
    if engine.decoder is None:
        return _in_torch(metamodel)
    return engine.decoder(metamodel.model, _Weights(metamodel), threads=threads, precision=precision)


class _Weights(Mapping[str, Tensor | QTensor]):
    """The parameters of a MetaModel by name, read on demand; quantized weights as QTensors."""

    def __init__(self, metamodel: MetaModel) -> None:
        self.metamodel = metamodel
        folder = metamodel.folder
        codes = folder.quantized if isinstance(folder, QuantizedFolder) else set()
        self.codes = {p.parameter: p.name for p in metamodel.slices.values() if p.name in codes and p.index is None}
        self.names = [*metamodel.outside(), *metamodel.parameters(metamodel.blocks.path)]

    def __getitem__(self, name: str) -> Tensor | QTensor:
        if name in self.codes and self.codes[name] not in self._transposed():
            return self.metamodel.folder.qtensor(self.codes[name])  # type: ignore[attr-defined]
        if name not in self.names:
            raise KeyError(name)
        return self.metamodel.value(name)

    def _transposed(self) -> set[str]:
        return getattr(self.metamodel.folder, "transposed", set())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def open_folder(folder: Path) -> HfFolder:
    """Open a folder, quantized, sparse or neither."""
    plain = HfFolder(folder)
    if sparsity_of(plain.config) is not None:
        return SparseFolder(folder)
    return QuantizedFolder(folder) if "quantization_config" in plain.config else plain


def _in_torch(metamodel: MetaModel) -> nn.Module:
    model, folder = metamodel.model, metamodel.folder
    codes = folder.quantized if isinstance(folder, QuantizedFolder) else set()
    owners = {
        f"{m.name}.{w}": m
        for m in weighted_modules(model)
        for w in m.weights
        if m.op == "linear" and m.skip_reason is None
    }
    replaced = set()
    for tensor_slice in metamodel.slices.values():
        weighted = owners.get(tensor_slice.parameter)
        if tensor_slice.name in codes and tensor_slice.index is None and weighted is not None:
            dtype = weighted.module.get_parameter("weight").dtype
            weight = QuantizedWeight(folder.qtensor(tensor_slice.name), dtype)  # type: ignore[attr-defined]
            bias = getattr(weighted.module, "bias", None)
            if bias is not None:
                metamodel.load([f"{weighted.name}.bias"])
                bias = weighted.module.bias
            layer = QuantizedLinear(weight, bias, None, weighted.transposed)  # type: ignore[arg-type]
            parent, _, key = weighted.name.rpartition(".")
            setattr(model.get_submodule(parent), key, layer.eval())
            replaced.update({tensor_slice.parameter, f"{weighted.name}.bias"})
    metamodel.load(
        [n for n in (*metamodel.outside(), *metamodel.parameters(metamodel.blocks.path)) if n not in replaced]
    )
    _set_generation_config(model, folder.path)
    return model


def _set_generation_config(model: nn.Module, path: Path) -> None:
    """Set the folder's generation settings."""
    if hasattr(model, "generation_config") and (found := generation_config(path)) is not None:
        model.generation_config = found  # type: ignore[assignment]


def check_sums(folder: Path) -> None:
    """Check a folder against its manifest, if Tersor wrote it; other folders have none."""
    path = folder / MANIFEST
    if not path.is_file():
        if not os.path.lexists(folder / "config.json"):
            raise CheckpointError(f"{folder} has no config.json: pass a folder in the Hugging Face layout")
        return
    verify(folder, read_language_manifest(folder))
