"""Trainings in processes of their own: killed at random moments, and shared by two."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("training_worker.py")
PATHS = [str(WORKER.parents[2] / "src"), str(WORKER.parents[1])]


def started(*command):
    own = {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env={**os.environ, **own}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )


def together(folder, rows, wrong, port):
    """Two processes."""
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}")
    return started(*launch, WORKER, folder, rows, wrong)


def result(folder, rank=0):
    return json.loads((folder / f"result-{rank}.json").read_text())


def ran(process, seconds=900):
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out[-3000:]


@pytest.mark.slow
def test_five_kills_change_no_bit(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    ran(started(WORKER, straight, 8, -1))
    draws, moments = random.Random(0), []
    for _ in range(5):
        process = started(WORKER, killed, 8, -1)
        state = killed / "step-2" / "training.safetensors"
        before = state.stat().st_mtime_ns if state.exists() else None
        deadline = time.monotonic() + 120
        # From the first write of this run on, at any moment.
        while process.poll() is None and time.monotonic() < deadline:
            if state.exists() and state.stat().st_mtime_ns != before:
                break
            time.sleep(0.002)
        time.sleep(draws.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        moments.append(process.returncode)
    ran(started(WORKER, killed, 8, -1))
    assert -signal.SIGKILL in moments
    one, other = result(straight), result(killed)
    assert one == other


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_doubled_batch(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    ran(started(WORKER, alone, 12, -1))
    ran(together(both, 6, -1, 29617))
    first, second, one = result(both, 0), result(both, 1), result(alone)
    assert first == second
    assert sorted(p.name for p in both.rglob("*.*")) == ["result-0.json", "result-1.json", "training.safetensors"]
    assert first["losses"] == pytest.approx(one["losses"], rel=0.02)
    assert first["held out"] == pytest.approx(one["held out"], rel=0.02)
    for name, scales in one["scales"].items():
        assert first["scales"][name] == pytest.approx(scales, rel=0.02), name


@pytest.mark.slow
def test_two_processes_with_batchnorm_end_equal(tmp_path):
    ran(together(tmp_path, 8, -1, 29618))
    assert result(tmp_path, 0) == result(tmp_path, 1)


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other(tmp_path):
    begun = time.monotonic()
    process = together(tmp_path, 8, 1, 29619)
    out, _ = process.communicate(timeout=900)
    assert process.returncode != 0
    assert "an error of one rank" in out
    assert time.monotonic() - begun < 150
