"""A compressed folder as a model that generates: in PyTorch, of the user's own class, or in OpenVINO."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.engines.openvino_decoder import OpenVinoDecoder
from tersor.errors import CaptureError, CheckpointError, EngineError, SavedFolderError
from tersor.network.quantized import QuantizedLinear, QuantizedWeight
from tersor.network.swap import holders
from tersor.numerics import QTensor
from tersor.pipeline.compressed import LANGUAGE, MANIFEST, verify
from tersor.pipeline.skeleton import Skeleton, quiet


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
        skeleton, why_not = Skeleton(opened(folder)), None
        if engine != "torch":
            try:
                return OpenVinoDecoder.build(skeleton.model, _Weights(skeleton), threads=threads), None
            except (EngineError, CaptureError) as error:
                if engine == "openvino":
                    raise
                why_not = str(error).splitlines()[0]
            # One that nobody has traced.
            skeleton = Skeleton(opened(folder))
        return _in_torch(skeleton), why_not


class _Weights(Mapping[str, Tensor | QTensor]):
    """The parameters of a skeleton's model by name, read when asked for; codes as they are."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        folder = skeleton.folder
        codes = folder.quantized if isinstance(folder, QuantizedFolder) else set()
        self.codes = {p.parameter: p.name for p in skeleton.pieces.values() if p.name in codes and p.index is None}
        self.names = [*skeleton.outside(), *skeleton.parameters(skeleton.blocks.path)]

    def __getitem__(self, name: str) -> Tensor | QTensor:
        if name in self.codes and self.codes[name] not in self._transposed():
            return self.skeleton.folder.qtensor(self.codes[name])  # type: ignore[attr-defined]
        if name not in self.names:
            raise KeyError(name)
        return self.skeleton.value(name)

    def _transposed(self) -> set[str]:
        return getattr(self.skeleton.folder, "transposed", set())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def opened(folder: Path) -> HfFolder:
    """The folder, quantized or not."""
    plain = HfFolder(folder)
    return QuantizedFolder(folder) if "quantization_config" in plain.config else plain


def _in_torch(skeleton: Skeleton) -> nn.Module:
    model, folder = skeleton.model, skeleton.folder
    codes = folder.quantized if isinstance(folder, QuantizedFolder) else set()
    owners = {f"{h.name}.{w}": h for h in holders(model) for w in h.weights if h.op == "linear" and h.left is None}
    exchanged = set()
    for piece in skeleton.pieces.values():
        holder = owners.get(piece.parameter)
        if piece.name in codes and piece.index is None and holder is not None:
            weight = QuantizedWeight(folder.qtensor(piece.name))  # type: ignore[attr-defined]
            bias = getattr(holder.module, "bias", None)
            if bias is not None:
                skeleton.load([f"{holder.name}.bias"])
                bias = holder.module.bias
            layer = QuantizedLinear(weight, bias, None, holder.transposed)  # type: ignore[arg-type]
            parent, _, key = holder.name.rpartition(".")
            setattr(model.get_submodule(parent), key, layer.eval())
            exchanged.update({piece.parameter, f"{holder.name}.bias"})
    skeleton.load([n for n in (*skeleton.outside(), *skeleton.parameters(skeleton.blocks.path)) if n not in exchanged])
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
