"""Write the compressed folder atomically: shards, index, configuration, tokenizer, report and checksums."""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tersor.checkpoints.destination import put_in_place
from tersor.checkpoints.hf_folder import INDEX, HfFolder
from tersor.checkpoints.layouts import LAYOUTS, Layout
from tersor.checkpoints.manifest import LANGUAGE, MANIFEST, sha256
from tersor.checkpoints.readers import open_as_reader
from tersor.files import write_text, writing
from tersor.measure.language import LanguageReport
from tersor.network.blocks.chain import get_tensor
from tersor.numerics import QTensor, QuantSpec
from tersor.pipeline.folder.job import Job
from tersor.pipeline.folder.journal import Journal, save
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.pipeline.folder.solving.sparse import SparseWeights
from tersor.report.card import CARD, model_card, name_of, original_card
from tersor.report.language import language_html
from tersor.words import said


def check_readable(job: Job) -> None:
    """Let transformers open the result before it exists, from the planned shape and dtype of each tensor.

    Raises:
        CheckpointError: it would not open it, or not as intended.
    """
    layout, dtype = LAYOUTS[job.layout], job.source.dtype
    specs = {t.slice.name: t for t in job.plans if t.spec}
    encoded: dict[tuple[tuple[int, ...], QuantSpec], dict[str, Tensor]] = {}
    tensors = {}
    for name, entry in job.source.entries.items():
        plan = specs.get(name)
        if plan is None or plan.spec is None:
            tensors[name] = torch.empty(entry.shape, dtype=entry.dtype, device="meta")
            continue
        key = plan.shape, plan.spec
        if key not in encoded:
            encoded[key] = layout.encode("x.weight", _zeros(*key), dtype)
        parts = {f"{plan.name}.{n.removeprefix('x.')}": t for n, t in encoded[key].items()}
        tensors |= {n: torch.empty(t.shape, dtype=t.dtype, device="meta") for n, t in parts.items()}
    if job.quantize.rotate:
        for name, place in job.metamodel.tied_to.items():
            entry = job.source.entries[place]
            tensors[name] = torch.empty(entry.shape, dtype=entry.dtype, device="meta")
    config = folder_config(job, {t.name for t in job.plans if t.spec})
    open_as_reader(config, tensors, job.metamodel.unused)


def tensors_of(metamodel: MetaModel, layout: Layout, parameters: Collection[str], codes: Mapping[str, QTensor]) -> (
    dict[str, Tensor]
):
    """The tensors that the folder stores for these parameters, with ``codes`` by the names in the folder."""
    stored, folder = dict[str, Tensor](), metamodel.folder
    for tensor_slice in [s for s in metamodel.slices.values() if s.parameter in set(parameters)]:
        if (qtensor := codes.get(tensor_slice.name)) is not None:
            stored.update(layout.encode(tensor_slice.name, qtensor, folder.dtype))
        elif tensor_slice.whole:
            value = tensor_slice.part(get_tensor(metamodel.model, tensor_slice.parameter).detach()).cpu()
            original = folder.tensor(tensor_slice.name)
            # An unchanged tensor is stored as it was, not rounded through the dtype of the computation.
            same = _same(original.to(value.dtype), value)
            stored[tensor_slice.name] = original if same else value.to(original.dtype).clone()
        else:
            stored[tensor_slice.name] = folder.tensor(tensor_slice.name)
    return stored


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values, including NaN."""
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def codes_in(job: Job, tensors: Mapping[str, Tensor]) -> dict[str, QTensor]:
    """The quantized weights among the tensors of a shard, by their names in the folder."""
    layout, found = LAYOUTS[job.layout], dict[str, QTensor]()
    config = folder_config(job, {t.name for t in job.plans if t.spec}).get("quantization_config", {})
    for name in layout.stored(tensors, config):
        stem = name.removesuffix("weight")
        parts = {n: t for n, t in tensors.items() if n.startswith(stem) and n != f"{stem}bias"}
        found[name] = layout.decode(name, parts, config)
    return found


def _zeros(shape: tuple[int, ...], spec: QuantSpec) -> QTensor:
    scale = torch.ones(spec.granularity.scale_shape(shape))
    return QTensor(torch.zeros(shape, dtype=spec.format.dtype), scale, torch.zeros_like(scale), spec)


def finish(
    job: Job, notes: Journal, outside: Mapping[str, Tensor], report: LanguageReport, out: Path, force: bool
) -> LanguageReport:
    """Assemble the folder ``out`` from the journal, and delete the journal.

    Returns:
        The report with the findings of its readers.

    Raises:
        CheckpointError: transformers does not open the folder, which is then not put in place.
        SavedFolderError: it cannot be written.
    """
    with writing(out):
        return _finish(job, notes, outside, report, out, force)


def _finish(
    job: Job, notes: Journal, outside: Mapping[str, Tensor], report: LanguageReport, out: Path, force: bool
) -> LanguageReport:
    staging = notes.folder / "out"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    sparse = SparseWeights(job.sparse, job.plans)
    _shards(job, notes, outside, staging, sparse)
    known, left = job.source.others()
    for path in known:
        shutil.copyfile(path, staging / path.name)
    config = sparse.config(folder_config(job, {w.name for w in report.weights if w.format}), job.metamodel)
    write_text(staging / "config.json", json.dumps(config, indent=1))
    found = HfFolder(staging).entries.items()
    stored = {name: torch.empty(e.shape, dtype=e.dtype, device="meta") for name, e in found}
    unchecked = open_as_reader(config, stored, job.metamodel.unused)
    if left:
        unchecked.append(said(
            "not copied from the source, as they are no known side files: {names}",
            names=", ".join(left),
        ))
    report = sparse.counted(report.model_copy(update={"warnings": (*report.warnings, *unchecked)}), staging)
    original = original_card(staging)  # copied with the known files
    describe(staging, report, job.recipe.to_yaml(), config, report.layout, name_of(job.source.path), original)
    put_in_place(staging, out, force, (job.source.path,))
    shutil.rmtree(notes.folder, ignore_errors=True)
    return report


def describe(
    staging: Path, report: LanguageReport, recipe: str, config: Mapping[str, Any], layout: str, name: str,
    original: str | None,
) -> None:  # fmt: skip
    """Write what is said about the weights of a folder, and its manifest.

    Args:
        recipe: the text of the recipe.
        config: the content of config.json.
        name: of the original model; original: the text of its card, or None.
    """
    write_text(staging / "recipe.yaml", recipe)
    write_text(staging / "report.json", report.to_json())
    write_text(staging / "report.html", language_html(report))
    write_text(staging / CARD, model_card(report, config, name, original))
    files = {
        p.name: {"sha256": sha256(p), "bytes": p.stat().st_size, "shipped": p.suffix not in (".html", ".yaml")}
        for p in sorted(staging.iterdir())
    }
    manifest = {"format": 1, "kind": LANGUAGE, "layout": layout, "files": files}
    write_text(staging / MANIFEST, json.dumps(manifest, indent=1))


def _shards(
    job: Job, notes: Journal, outside: Mapping[str, Tensor], staging: Path, sparse: SparseWeights
) -> None:
    count = len(job.metamodel.blocks)
    name = "model-{:05d}-of-" + f"{count + 1:05d}.safetensors"
    save(sparse.stored(outside), staging / name.format(1))
    for k in range(count):
        before = len(sparse.bytes)
        stored = sparse.stored(load_file(notes.shard(k))) if sparse.floats else {}
        if len(sparse.bytes) > before:
            save(stored, staging / name.format(k + 2))
        else:
            _link_or_copy(notes.shard(k), staging / name.format(k + 2))
    where, size = {}, 0
    for path in sorted(staging.glob("*.safetensors")):
        size += path.stat().st_size
        with safe_open(str(path), framework="pt") as shard:
            where.update(dict.fromkeys(shard.keys(), path.name))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    write_text(staging / INDEX, json.dumps(index, indent=1))


def _link_or_copy(source: Path, destination: Path) -> None:
    """Link a file to another name, or copy it if the file system has no links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def folder_config(job: Job, solved: Collection[str]) -> dict[str, Any]:
    """The content of config.json, given the names of the weights that are solved."""
    # Experts first: if formats name layers, transformers reads fused experts by the first one.
    plans = sorted(job.plans, key=lambda t: t.slice.index is None)
    stored = {t.name: t.spec for t in plans if t.spec and t.name in solved}
    parted = bool(job.metamodel.untied) and not job.metamodel.ties
    source = _untied(job.source.config) if job.quantize.rotate or parted else job.source.config
    if not stored:
        return source
    specs = {f"{name}.weight": spec for name, spec in stored.items()}
    # Other tools use the model's parameter names; names in the folder may lack the prefix of a base model.
    parameters = {t.slice.parameter: stored[t.name] for t in job.plans if t.name in stored}
    model_specs = {p: spec for p, spec in parameters.items() if p.endswith(".weight")}
    modules = job.metamodel.model.named_modules()
    unquantized = [n for n, m in modules if isinstance(m, nn.Linear) and f"{n}.weight" not in model_specs]
    unquantized += [t.name for t in job.plans if t.name not in stored and t.name not in unquantized]
    config = LAYOUTS[job.layout].config(specs | model_specs, unquantized)
    if transposed := [t.name for t in job.plans if t.name in stored and t.transposed]:
        config["tersor_transposed"] = transposed
        if "quantization_status" in config:
            # transformers would initialize weights of no nn.Linear at random; it rejects an unknown status.
            config["quantization_status"] = "tersor"
    return {**source, "quantization_config": config}


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model whose head and embedding have separate weights."""
    parts = {
        key: _untied(value)
        for key, value in config.items()
        if isinstance(value, dict) and value.get("tie_word_embeddings")
    }
    return {**config, **parts, "tie_word_embeddings": False}

