"""Write the compressed folder atomically: shards, index, configuration, tokenizer, report and checksums."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from tersor.checkpoints.hf_folder import INDEX
from tersor.checkpoints.layouts import LAYOUTS
from tersor.checkpoints.manifest import LANGUAGE, MANIFEST, check_free, replace_folder, sha256
from tersor.measure.language import LanguageReport
from tersor.pipeline.folder.job import Job
from tersor.pipeline.folder.journal import Journal, save
from tersor.report.language import language_html


def finish(
    job: Job, notes: Journal, outside: Mapping[str, Tensor], report: LanguageReport, out: Path, force: bool
) -> None:
    """Assemble the folder ``out`` from the journal, and delete the journal."""
    staging = notes.folder / "out"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    _shards(job, notes, outside, staging)
    for path in job.source.others():
        shutil.copy2(path, staging / path.name)
    _write(staging / "config.json", json.dumps(_config(job, report), indent=1))
    _write(staging / "recipe.yaml", job.recipe.to_yaml())
    _write(staging / "report.json", report.to_json())
    _write(staging / "report.html", language_html(report))
    files = {
        p.name: {"sha256": sha256(p), "bytes": p.stat().st_size, "shipped": p.suffix not in (".html", ".yaml")}
        for p in sorted(staging.iterdir())
    }
    manifest = {"format": 1, "kind": LANGUAGE, "layout": job.layout, "files": files}
    _write(staging / MANIFEST, json.dumps(manifest, indent=1))
    check_free(out, force)  # it may have been created during the run
    replace_folder(staging, out)
    shutil.rmtree(notes.folder, ignore_errors=True)


def _shards(job: Job, notes: Journal, outside: Mapping[str, Tensor], staging: Path) -> None:
    count = len(job.metamodel.blocks)
    name = "model-{:05d}-of-" + f"{count + 1:05d}.safetensors"
    save(outside, staging / name.format(1))
    for k in range(count):
        _link_or_copy(notes.shard(k), staging / name.format(k + 2))
    where, size = {}, 0
    for path in sorted(staging.glob("*.safetensors")):
        size += path.stat().st_size
        with safe_open(str(path), framework="pt") as shard:
            where.update(dict.fromkeys(shard.keys(), path.name))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    _write(staging / INDEX, json.dumps(index, indent=1))


def _link_or_copy(source: Path, destination: Path) -> None:
    """Link a file to another name, or copy it if the file system has no links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _config(job: Job, report: LanguageReport) -> dict[str, Any]:
    solved = {w.name for w in report.weights if w.format}
    stored = {t.name: t.spec for t in job.plans if t.spec and t.name in solved}
    parted = bool(job.metamodel.untied) and not job.metamodel.ties
    source = _untied(job.source.config) if job.recipe.quantize.rotate or parted else job.source.config
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
    return {**source, "quantization_config": config}


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model whose head and embedding have weights of their own."""
    parts = {
        key: _untied(value)
        for key, value in config.items()
        if isinstance(value, dict) and value.get("tie_word_embeddings")
    }
    return {**config, **parts, "tie_word_embeddings": False}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf8")
