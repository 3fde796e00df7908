"""Observations as two files: numbers as JSON, arrays as safetensors. Reading does not execute or unpickle anything."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tersor.checkpoints.foreign.files import foreign, inside, read_object
from tersor.checkpoints.tensors import save_tensors
from tersor.errors import SavedFolderError
from tersor.files import write_text
from tersor.network.calibrate import Calibration
from tersor.network.observations import Observables, Observations
from tersor.observers import Channels, Histogram, Sample, Statistics
from tersor.observers.gram import Gram
from tersor.observers.histogram import BINS
from tersor.observers.sample import Fingerprints
from tersor.observers.statistics import Stretch

FILES = ("observations.json", "observations.safetensors")
FORMAT = 1
_NUMBERS = ("count", "rows", "batches", "min", "max", "momentum", "per_row")


def write(observations: Observations, folder: Path) -> tuple[str, ...]:
    """Write observations into an existing folder, and return the file names."""
    tensors: dict[str, Tensor] = {}
    found = observations.calibration
    for kind, values in (("means", found.means), ("inputs", observations.inputs)):
        tensors.update({f"{kind}/{name}": x for name, x in values.items()})
    for number, batch in enumerate(observations.first):
        tensors.update({f"first/{number}/{k}": x for k, x in enumerate(batch)})
    tensors.update({f"grams/{name}": gram.hessian for name, gram in observations.grams.items()})
    data = {
        "format": FORMAT,
        "network": observations.network,
        "observed": {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(observations.observed).items()},
        "samples": found.samples,
        "mean_samples": found.mean_samples,
        "statistics": {name: _numbers(s, f"statistics/{name}", tensors) for name, s in found.statistics.items()},
        "grams": {name: gram.rows for name, gram in observations.grams.items()},
        "first": [len(batch) for batch in observations.first],
    }
    write_text(folder / FILES[0], json.dumps(data, indent=1))
    # Copies, since batches are often views of one tensor, which safetensors rejects.
    save_tensors({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}, folder / FILES[1])
    return FILES


def read(folder: Path) -> Observations:
    """The observations that ``write`` wrote.

    Raises:
        SavedFolderError: naming the file that is missing, damaged or of another version.
    """
    path, remedy = inside(folder, FILES[0], SavedFolderError), "observe the network again"
    data = read_object(path, SavedFolderError, f"{path}: no observations that can be read: {remedy}")
    with foreign(SavedFolderError, f"{path}: no observations that can be read", remedy):
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
        return _observations(data, load_file(inside(folder, FILES[1], SavedFolderError)))


def _observations(data: dict[str, Any], tensors: Mapping[str, Tensor]) -> Observations:
    observed: dict[str, Any] = {k: frozenset(v) if isinstance(v, list) else v for k, v in data["observed"].items()}
    statistics = {
        name: _statistics(numbers, f"statistics/{name}", tensors) for name, numbers in data["statistics"].items()
    }
    return Observations(
        data["network"],
        Observables(**observed),
        Calibration(statistics, _under("means/", tensors), data["samples"], data["mean_samples"]),
        {name: Gram(tensors[f"grams/{name}"], rows) for name, rows in data["grams"].items()},
        _under("inputs/", tensors),
        tuple(tuple(tensors[f"first/{n}/{k}"] for k in range(count)) for n, count in enumerate(data["first"])),
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _numbers(s: Statistics, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The numbers of a Statistics; its arrays go into ``tensors``."""
    used = np.flatnonzero(s.histogram.counts)
    start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    tensors[f"{name}/histogram"] = torch.from_numpy(s.histogram.counts[start:stop])
    tensors[f"{name}/keys"] = torch.from_numpy(s.fingerprints.keys.view(np.int64))
    tensors[f"{name}/counts"] = torch.from_numpy(s.fingerprints.counts)
    found = {key: getattr(s, key) for key in _NUMBERS} | {
        "first": s.first,
        "ema": s.ema,
        "course": [(c.rows, c.low, c.high) for c in s.course],
        "histogram": {"exponent": s.histogram.exponent, "zeros": s.histogram.zeros, "start": start},
    }
    if s.channels is not None:
        found["channels"] = s.channels.count
        tensors.update({f"{name}/{f.name}": getattr(s.channels, f.name) for f in fields(Channels)[1:]})
    if s.sample is not None:
        found["sample"] = {"capacity": s.sample.capacity, "seed": s.sample.seed, "keys": s.sample.keys}
        tensors.update({f"{name}/rows/{k}": row for k, row in enumerate(s.sample.rows)})
    return found


def _statistics(data: dict[str, Any], name: str, tensors: Mapping[str, Tensor]) -> Statistics:
    grid = data["histogram"]
    used, counts = tensors[f"{name}/histogram"].numpy(), np.zeros(2 * BINS, dtype=np.int64)
    counts[grid["start"] : grid["start"] + len(used)] = used
    channels = sample = None
    if "channels" in data:
        channels = Channels(data["channels"], *(tensors[f"{name}/{f.name}"] for f in fields(Channels)[1:]))
    if "sample" in data:
        kept = data["sample"]
        rows = tuple(tensors[f"{name}/rows/{k}"] for k in range(len(kept["keys"])))
        sample = Sample(kept["capacity"], kept["seed"], tuple(kept["keys"]), rows)
    keys, times = (tensors[f"{name}/{kind}"].numpy() for kind in ("keys", "counts"))
    low, high = data["first"]
    return Statistics(
        **{key: data[key] for key in _NUMBERS},
        first=(low, high),
        ema=(data["ema"][0], data["ema"][1]),
        histogram=Histogram(grid["exponent"], counts, grid["zeros"]),
        channels=channels,
        course=tuple(Stretch(*c) for c in data["course"]),
        fingerprints=Fingerprints(keys.view(np.uint64), times),
        sample=sample,
    )
