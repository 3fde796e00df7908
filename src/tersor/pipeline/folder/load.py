"""Load a compressed folder as a model that generates, in PyTorch or OpenVINO."""

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
    """Whether a folder is in the Hugging Face layout, written by Tersor or others."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            return json.loads(manifest.read_text(encoding="utf8")).get("kind") == LANGUAGE
        except (ValueError, AttributeError):
            return False
    return (folder / "config.json").is_file()


def load_language(
    folder: Path, engine: str = "torch", threads: int | None = None, precision: str = "f32"
) -> tuple[Any, str | None]:
    """Load a model with ``generate``; also returns, in one line, why ``auto`` did not choose OpenVINO, or None.

    Args:
        folder: a folder that ``compress_folder`` wrote, one from another tool in the layout of compressed-tensors, GPTQ
            or AWQ, or an unquantized one.
        engine: ``torch``: the transformers class that config.json names, with quantized linear layers; ``openvino``: an
            ``OpenVinoDecoder``; ``auto``: ``openvino`` if it can be built, otherwise ``torch``.
        precision: of OpenVINO's float operators; in torch it is the folder's own dtype.

    Raises:
        SavedFolderError: a file of the folder is missing or altered.
        CheckpointError: a file is missing, truncated or damaged.
        EngineError: the engine is unknown, or is OpenVINO and not installed or unable to compile the model; or a
            precision for torch.
        CaptureError: the architecture is unknown, or the engine is OpenVINO and torch.export fails.
    """
    if engine not in ("auto", "openvino", "torch"):
        raise EngineError(f"engine {engine!r} does not run language models: choose torch, openvino or auto")
    if precision != "f32" and engine != "openvino":
        raise EngineError(f"in torch a language model computes in its own dtype, not in {precision}; use openvino")
    check_sums(folder)
    with quiet():
        metamodel, why_not = MetaModel(open_folder(folder)), None
        if engine != "torch":
            try:
                weights = _Weights(metamodel)
                return OpenVinoDecoder.build(metamodel.model, weights, threads=threads, precision=precision), None
            except (EngineError, CaptureError) as error:
                if engine == "openvino":
                    raise
                why_not = str(error).splitlines()[0]
            # Start again with a model that was not traced.
            metamodel = MetaModel(open_folder(folder))
        return _in_torch(metamodel), why_not


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
    """Open a folder, quantized or not."""
    plain = HfFolder(folder)
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
            weight = QuantizedWeight(folder.qtensor(tensor_slice.name))  # type: ignore[attr-defined]
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
    if (path / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)  # type: ignore[assignment]


def check_sums(folder: Path) -> None:
    """Check a folder against its manifest, if Tersor wrote it; other folders have none."""
    path = folder / MANIFEST
    if not path.is_file():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json: pass a folder in the Hugging Face layout")
        return
    try:
        manifest = json.loads(path.read_text(encoding="utf8"))
        verify(folder, {"files": {str(k): dict(v) for k, v in manifest["files"].items()}})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SavedFolderError(f"{path} is damaged ({error}): copy the folder again") from error
