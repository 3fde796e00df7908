"""One runner, called by several threads at once: each gets the answers to its own inputs."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from parts import task_of
from torch import nn

import tersor
from tersor.engines import ENGINES

RUNNING = [name for name in ENGINES if ENGINES[name].version() is not None]


@pytest.mark.parametrize("engine", RUNNING)
@pytest.mark.parametrize(
    ("workers", "calls"), [(4, 100), *(pytest.param(n, 2000, marks=pytest.mark.slow) for n in (2, 4, 8))]
)
def test_each_thread_gets_its_own_answers(engine, workers, calls):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6)).eval()
    recipe = "int8-tensorrt" if engine == "tensorrt" else "int8-static"
    done = tersor.compress(task_of(model, (2, 6, 6)), recipe, engine, threads=1, report=False, progress=False)
    # Batches of one and of several, which are separate models in OpenVINO.
    inputs = [torch.randn(1 + k % 3, 2, 6, 6) for k in range(24)]
    alone = [done.runner(x) for x in inputs]

    def wrong(worker: int) -> int:
        numbers = [(worker * 7 + k) % len(inputs) for k in range(calls // workers)]
        return sum(not torch.equal(done.runner(inputs[n]), alone[n]) for n in numbers)

    with ThreadPoolExecutor(workers) as pool:
        assert sum(pool.map(wrong, range(workers))) == 0
