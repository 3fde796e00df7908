"""Merge a LoRA adapter, as PEFT saves it, into the codes of a quantized folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tersor.arguments import path_of
from tersor.checkpoints.destination import check_folder, put_in_place
from tersor.checkpoints.foreign.adapter import Adapter, read_adapter
from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.manifest import MANIFEST
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import CheckpointError
from tersor.files import working_folder
from tersor.measure.language import WeightRecord, is_language_report, read_language_report
from tersor.numerics import QTensor
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.folder.deployed import opened
from tersor.pipeline.folder.journal import save
from tersor.pipeline.folder.load import check_sums
from tersor.pipeline.folder.metamodel import MetaModel, quiet
from tersor.pipeline.folder.write import describe
from tersor.report.card import ORIGINAL, original_card
from tersor.training.language.adapters import merged
from tersor.turns import in_turn
from tersor.words import said

STALE = said("an adapter was merged; what was measured on text before that is left out")


@in_turn
def merge_lora(folder: str | Path, adapter: str | Path, out: str | Path, *, force: bool = False) -> Compressed:
    """Add a LoRA adapter to the weights of a quantized folder, and round them again; the result is such a folder, too.

    W = dequantize(codes) + scaling · B·A, rounded in the spec of the codes; each scale is kept or fitted again,
    whichever loses less. The report says for each weight which share of the adapter's change (in power) rounding
    loses: at 2 bits it may be most of it. LoRA: arXiv 2106.09685.

    Args:
        folder: one that ``compress_folder`` wrote, or another quantized folder in one of ``LAYOUTS``.
        adapter: a folder that PEFT's ``save_pretrained`` wrote.
        out: the folder to write; ``force`` replaces what Tersor wrote there.

    Raises:
        CheckpointError: the folder is not quantized; the adapter is no LoRA of linear layers, or does not fit: the
            message names the layer.
        SavedFolderError: ``out`` exists or cannot be written.
    """
    folder = path_of("folder", folder, CheckpointError)
    adapter = path_of("adapter", adapter, CheckpointError)
    out = check_folder(out, force, (folder, adapter)).resolve()
    check_sums(folder)
    with working_folder(out) as parts, quiet():
        source, found = QuantizedFolder(folder), read_adapter(adapter)
        staging = parts / "out"
        shutil.rmtree(staging, ignore_errors=True)
        source.copy_to(staging)
        lost = _merge(source, found, staging)
        if (folder / MANIFEST).is_file() and is_language_report(folder):
            _describe(folder, staging, lost)
        put_in_place(staging, out, force, (folder, adapter))
    return opened(out)


def _merge(source: QuantizedFolder, adapter: Adapter, staging: Path) -> dict[str, float | None]:
    """Rewrite the shards with the merged weights; returns what each lost, None for a float weight."""
    metamodel = MetaModel(source)
    places = _places(metamodel, adapter)
    lost: dict[str, float | None] = {}
    for file in sorted({source.entries[name].file for name in places}):
        tensors = load_file(staging / file)
        for name in [n for n in places if source.entries[n].file == file]:
            shape, turned = source.entries[name].shape, _is_transposed(metamodel, places[name])
            changed = adapter.shape(places[name])
            if changed != (shape[::-1] if turned else shape):
                raise CheckpointError(
                    f"{name} has the shape {list(shape)}, and the adapter changes one of {list(changed)}: it belongs "
                    "to another model"
                )
            delta = adapter.delta(places[name])
            if name in source.quantized:
                codes, lost[name] = merged(source.qtensor(name), delta)
                tensors |= _encoded(source, name, codes, tensors)
            else:
                lost[name] = None
                sum_ = tensors[name].float() + (delta.t() if turned else delta)
                tensors[name] = sum_.to(tensors[name].dtype)
        save(tensors, staging / file)
    return lost


def _encoded(source: QuantizedFolder, name: str, codes: QTensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    encoded = source.layout.encode(name, codes, source.dtype)
    if missing := sorted(set(encoded) - set(tensors)):
        raise CheckpointError(
            f"{name}: the folder stores it without {missing[0]}, as another tool wrote it; compress the float model "
            "with Tersor, or merge the adapter into that"
        )
    return encoded


def _places(metamodel: MetaModel, adapter: Adapter) -> dict[str, str]:
    """The names in the folder of the weights that an adapter changes, and the names of their modules."""
    by_parameter = {s.parameter: s for s in metamodel.slices.values()}
    tied = set(metamodel.tied_to) | {metamodel.slices[n].parameter for n in metamodel.tied_to.values()}
    places = {}
    for module in adapter.factors:
        place = by_parameter.get(f"{module}.weight")
        if place is None or not place.whole or place.index is not None or not _is_linear(metamodel, module):
            raise CheckpointError(
                f"the adapter changes {module}, which is no linear layer of {metamodel.folder.path} with a weight of "
                "its own: it belongs to another model"
            )
        if place.parameter in tied:
            raise CheckpointError(
                f"the adapter changes {module}, whose weight is also the embedding's: leave it out of target_modules"
            )
        places[place.name] = module
    return places


def _is_linear(metamodel: MetaModel, module: str) -> bool:
    found = metamodel.model.get_submodule(module)
    return isinstance(found, torch.nn.Linear) or _is_transposed(metamodel, module)


def _is_transposed(metamodel: MetaModel, module: str) -> bool:
    """Whether a layer is GPT-2's Conv1D, whose weight is [in, out]."""
    return type(metamodel.model.get_submodule(module)).__name__ == "Conv1D"


def _describe(folder: Path, staging: Path, lost: Mapping[str, float | None]) -> None:
    """Write the report and card of the merged folder."""
    report = read_language_report(folder)
    weights = tuple(_line(w, lost) for w in report.weights)
    warnings = tuple(dict.fromkeys((*report.warnings, STALE)))
    scores = dict.fromkeys(("original", "compressed", "divergence"))
    report = report.model_copy(update=scores | {"weights": weights, "warnings": warnings})
    card = original_card(folder)
    original = None if card is None else card.partition(ORIGINAL)[2] or None
    recipe, config = (folder / "recipe.yaml").read_text(encoding="utf8"), HfFolder(staging).config
    describe(staging, report, recipe, config, report.layout, report.model, original)


def _line(weight: WeightRecord, lost: Mapping[str, float | None]) -> WeightRecord:
    name = f"{weight.name}.weight"
    if name not in lost:
        return weight
    share = lost[name]
    if share is None:
        return weight.model_copy(update={"note": said("{reason}; an adapter was added", reason=weight.note or "")})
    note = said("an adapter was added; rounding loses {share} of its change", share=f"{share * 100:.1f} %")
    changes = {"method": f"{weight.method}, adapter merged", "error": None, "rtn_error": None, "note": note}
    return weight.model_copy(update=changes)
