"""The process that `measure_memory` starts: loads a model, calls it, prints three readings as JSON."""

import gc
import importlib
import json
import sys
from dataclasses import asdict

import torch
from safetensors.torch import load_file

from tersor.measure.memory import Memory, resident_bytes


def probe(job: dict) -> Memory:
    """Does one job (the keys of `measure_memory`) in this process."""
    module, _, function = job["loader"].partition(":")
    load = getattr(importlib.import_module(module), function)
    for name in job["imports"]:
        importlib.import_module(name)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    named = load_file(job["inputs"])
    inputs = [named[str(k)] for k in range(len(named))]
    before = _settled()
    model = load(*job["arguments"])
    loaded = _settled()
    with torch.no_grad():
        for _ in range(job["calls"]):
            model(*inputs)
    return Memory(before, loaded, _settled())


def _settled() -> int:
    gc.collect()
    return resident_bytes()


if __name__ == "__main__":
    print("\n" + json.dumps(asdict(probe(json.loads(sys.argv[1])))))
