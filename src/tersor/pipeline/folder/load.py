"""A compressed folder as a model that generates: in PyTorch, of the user's own class, or in OpenVINO."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.manifest import LANGUAGE, MANIFEST, verify
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.engines.openvino_decoder import OpenVinoDecoder
from tersor.errors import CaptureError, CheckpointError, EngineError, SavedFolderError
from tersor.network.quantized import QuantizedLinear, QuantizedWeight
from tersor.network.swap import weighted_modules
from tersor.numerics import QTensor
from tersor.pipeline.folder.metamodel import MetaModel, quiet


def is_language(folder: Path) -> bool:
    """Whether a folder is one in the Hugging Face layout, by us or by others."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            return json.loads(manifest.read_text(encoding="utf8")).get("kind") == LANGUAGE
        except (ValueError, AttributeError):
            return False
    return (folder / "config.json").is_file()


def load_language(folder: Path, engine: str = "torch", threads: int | None = None) -> tuple[Any, str | None]:
    """A model with ``generate``; where ``auto`` came down to PyTorch also why OpenVINO could not, in one line.

    Args:
        folder: one that ``compress_folder`` wrote, or another's in the layout of compressed-tensors, GPTQ or AWQ,
            or one that is not quantized.
        engine: ``torch``: the class of transformers that config.json names, its linear layers holding codes;
            ``openvino``: an ``OpenVinoDecoder``; ``auto``: this where it can be built, otherwise ``torch``.

    Raises:
        SavedFolderError, CheckpointError: files that are missing, cut short or altered.
        EngineError: another engine, or OpenVINO was named and is not installed or does not take the model.
        CaptureError: an architecture that is not known, or OpenVINO was named and torch.export does not take it.
    """
    if engine not in ("auto", "openvino", "torch"):
        raise EngineError(f"language models run in torch or openvino, or auto chooses, not in {engine!r}")
    check_sums(folder)
    with quiet():
        metamodel, why_not = MetaModel(opened(folder)), None
        if engine != "torch":
            try:
                return OpenVinoDecoder.build(metamodel.model, _Weights(metamodel), threads=threads), None
            except (EngineError, CaptureError) as error:
                if engine == "openvino":
                    raise
                why_not = str(error).splitlines()[0]
            # One that nobody has traced.
            metamodel = MetaModel(opened(folder))
        return _in_torch(metamodel), why_not


class _Weights(Mapping[str, Tensor | QTensor]):
    """The parameters of a skeleton's model by name, read when asked for; codes as they are."""

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


def opened(folder: Path) -> HfFolder:
    """The folder, quantized or not."""
    plain = HfFolder(folder)
    return QuantizedFolder(folder) if "quantization_config" in plain.config else plain


def _in_torch(metamodel: MetaModel) -> nn.Module:
    model, folder = metamodel.model, metamodel.folder
    codes = folder.quantized if isinstance(folder, QuantizedFolder) else set()
    owners = {
        f"{h.name}.{w}": h
        for h in weighted_modules(model)
        for w in h.weights
        if h.op == "linear" and h.skip_reason is None
    }
    exchanged = set()
    for tensor_slice in metamodel.slices.values():
        weighted = owners.get(tensor_slice.parameter)
        if tensor_slice.name in codes and tensor_slice.index is None and weighted is not None:
            weight = QuantizedWeight(folder.qtensor(tensor_slice.name))  # type: ignore[attr-defined]
            bias = getattr(weighted.module, "bias", None)
            if bias is not None:
                metamodel.load([f"{weighted.name}.bias"])
                bias = weighted.module.bias
            layer = QuantizedLinear(weight, bias, None, weighted.transposed)  # type: ignore[arg-type]
            parent, _, key = weighted.name.rpartition(".")
            setattr(model.get_submodule(parent), key, layer.eval())
            exchanged.update({tensor_slice.parameter, f"{weighted.name}.bias"})
    metamodel.load(
        [n for n in (*metamodel.outside(), *metamodel.parameters(metamodel.blocks.path)) if n not in exchanged]
    )
    _generation(model, folder.path)
    return model


def _generation(model: nn.Module, path: Path) -> None:
    """The folder's own settings of generate."""
    if (path / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)  # type: ignore[assignment]


def check_sums(folder: Path) -> None:
    """Hold a folder of ours against its manifest; one of others has none."""
    path = folder / MANIFEST
    if not path.is_file():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json; give a folder in the Hugging Face layout")
        return
    try:
        manifest = json.loads(path.read_text(encoding="utf8"))
        verify(folder, {"files": {str(k): dict(v) for k, v in manifest["files"].items()}})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SavedFolderError(f"{path} is damaged ({error}); copy the folder again") from error
