"""Compressions in a row: the memory of the process does not grow."""

import gc
import time

import psutil
import torch
from torch import nn

import tersor
from tests.stress.row import Row

# Allocators keep pages and libraries fill caches in the first runs.
WARM = 5
# Of a run, in MB; a network that were kept would show as ten times that.
ALLOWED = 1.0


def row(runs: int = 20, engine: str = "openvino") -> Row:
    """Compress a network of 4 MB again and again; wrong if the runs after the first ones keep memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 768)).eval()
    data = [torch.rand(16, 256)]
    task = tersor.Task("memory", model, (torch.zeros(1, 256),), lambda: data)
    start, sizes = time.monotonic(), []
    for _ in range(runs):
        done = tersor.compress(task, "int8-static", engine, threads=1, report=False, progress=False)
        done(torch.rand(2, 256))
        del done
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss / 1e6)
    # The median of the last ones against that of the first warm ones: one odd reading decides nothing.
    kept = sorted(sizes[WARM:])
    half = len(kept) // 2
    first, last = sorted(sizes[WARM : WARM + half]), sorted(sizes[-half:])
    growth = (last[len(last) // 2] - first[len(first) // 2]) / max(1, half)
    said = f"{growth:+.2f} MB a run, from {sizes[WARM]:.0f} to {sizes[-1]:.0f} MB"
    return Row(f"compressions in a row, {engine}", runs, int(growth > ALLOWED), said, time.monotonic() - start)
