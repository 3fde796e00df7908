"""The process that `measure_memory` starts: load a model, call it, print three readings as JSON."""

import gc
import importlib
import json
import sys
from dataclasses import asdict

import torch
from safetensors.torch import load_file

from tersor.measure.memory import Memory, resident_bytes


def probe(job: dict) -> Memory:
    """Run one job (with the keys that `measure_memory` writes) in this process."""
    module, _, function = job["loader"].partition(":")
    load = getattr(importlib.import_module(module), function)
    for name in job["imports"]:
        importlib.import_module(name)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    named = load_file(job["inputs"])
    inputs = [named[str(k)] for k in range(len(named))]
    before = _resident_after_gc()
    model = load(*job["arguments"])
    loaded = _resident_after_gc()
    with torch.no_grad():
        for _ in range(job["calls"]):
            model(*inputs)
    return Memory(before, loaded, _resident_after_gc())


def _resident_after_gc() -> int:
    gc.collect()
    return resident_bytes()


def main() -> None:
    """Run the job in the last argument."""
    print("\n" + json.dumps(asdict(probe(json.loads(sys.argv[-1])))))
