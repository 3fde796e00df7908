"""Memory in a fresh process: what is loaded is seen, what was imported before is not, failures are quoted."""

import mmap
import os
from pathlib import Path

import pytest
import torch

import tersor
from tersor.errors import EngineError
from tersor.measure import measure_memory, peak_bytes, resident_bytes

LOADER = """
import numpy

def load(megabytes):
    print("engines are chatty")
    weights = numpy.ones(megabytes * 1_000_000, dtype=numpy.uint8)
    return lambda x, y: (weights, x + y)

def broken(megabytes):
    raise OSError("no such engine")

def slow(megabytes):
    import time
    time.sleep(60)
"""


@pytest.fixture
def loader(tmp_path, monkeypatch):
    (tmp_path / "memory_loader.py").write_text(LOADER)
    # The child finds this checkout as the parent does.
    source = Path(next(iter(tersor.__path__))).parent
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{source}")
    return "memory_loader"


@pytest.mark.slow
def test_what_is_loaded_is_seen(loader):
    inputs = (torch.ones(3), torch.ones(3))
    small, large = (measure_memory(f"{loader}:load", [size], inputs, calls=2, threads=1) for size in (1, 101))
    assert large.model_bytes - small.model_bytes == pytest.approx(100e6, rel=0.05)
    assert large.before_load == pytest.approx(small.before_load, rel=0.05)


@pytest.mark.slow
def test_a_loader_that_fails_is_quoted(loader):
    with pytest.raises(EngineError, match="no such engine"):
        measure_memory(f"{loader}:broken", [1], (torch.ones(1),))


def test_one_that_hangs_is_ended(loader):
    with pytest.raises(EngineError, match=r"did not finish within 0\.2 s"):
        measure_memory(f"{loader}:slow", [1], (torch.ones(1),), timeout=0.2)


def test_this_process():
    before = resident_bytes()
    # Straight from the system: an allocator might hand out what it already holds.
    with mmap.mmap(-1, 50_000_000) as block:
        block.write(b"x" * 50_000_000)
        assert resident_bytes() - before > 45_000_000
    peak = peak_bytes()
    assert peak is None or peak >= resident_bytes() * 0.9
