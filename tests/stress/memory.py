"""Compressions in a row: the memory of the process does not grow."""

import ctypes
import gc
import time

import torch
from torch import nn

import tersor
from tests.stress.row import Row

# Libraries fill caches in the first runs.
WARM = 2
# Of a run, in MB; a network that were kept would show as ten times that, the caches of torch as a tenth.
ALLOWED = 0.4


class _Allocated(ctypes.Structure):
    """What `mallinfo2` of the GNU C library returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated() -> float:
    """The MB that the process has asked for and not freed, without the pages that the allocator holds in reserve."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Allocated
    found = library.mallinfo2()
    return (found.uordblks + found.hblkhd) / 1e6


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
        sizes.append(allocated())
    growth = (sizes[-1] - sizes[WARM]) / (runs - 1 - WARM)
    said = f"{growth:+.2f} MB a run, from {sizes[WARM]:.0f} to {sizes[-1]:.0f} MB"
    return Row(f"compressions in a row, {engine}", runs, int(growth > ALLOWED), said, time.monotonic() - start)
