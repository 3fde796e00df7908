"""What the caller has set of PyTorch neither changes a result nor is changed; compressions in threads take turns."""

import contextlib
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from parts import task_of
from torch import nn

import tersor
from tersor.engines import ENGINES
from tersor.turns import in_turn, turn

RUNNING = [name for name in ENGINES if ENGINES[name].version() is not None and name != "tensorrt"]


def small_task(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
        return task_of(model, (2, 6, 6))


@contextlib.contextmanager
def restored(set_it, undo):
    set_it()
    try:
        yield
    finally:
        undo()


STATES = {
    "float64": lambda: restored(
        lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)
    ),
    "bfloat16": lambda: restored(
        lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.set_default_dtype(torch.float32)
    ),
    "deterministic": lambda: restored(
        lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)
    ),
    "warns": lambda: restored(
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "meta": lambda: restored(lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    "device": lambda: torch.device("meta"),
    "products": lambda: restored(
        lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")
    ),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "threads": lambda: restored(lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
}


def state():
    return (
        torch.get_default_dtype(), str(torch.get_default_device()), torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(), torch.get_float32_matmul_precision(),
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(), torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
        tuple(warnings.filters),
    )  # fmt: skip


def result(seed=0, engine="torch", recipe="int8-static"):
    return result_of(small_task(seed), engine, recipe)


def result_of(task, engine="torch", recipe="int8-static"):
    done = tersor.compress(task, recipe, engine, threads=1, report=False, progress=False)
    assert done.network is not None
    tensors = {name: value.clone() for name, value in done.network.tensors()}
    x = torch.rand(4, 2, 6, 6, generator=torch.Generator("cpu").manual_seed(5), dtype=torch.float32, device="cpu")
    return tensors | {"output": done(x)}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def wanted():
    return result()


@pytest.mark.parametrize("name", STATES)
def test_the_callers_state_changes_no_result_and_is_not_changed(name, wanted):
    task = small_task()
    with STATES[name]():
        before = state()
        done = tersor.compress(task, engine="torch", threads=1, report=False, progress=False)
        assert state() == before
    assert same({n: v.clone() for n, v in done.network.tensors()} | {"output": wanted["output"]}, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("engine", RUNNING)
@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic"])
def test_nor_does_it_with_evaluation_and_in_every_engine(name, engine, recipe, tmp_path):
    if recipe == "int8-dynamic" and engine == "onnxruntime":
        pytest.skip("it has no integers at run time")
    reference, task = result(0, engine, recipe), small_task()
    x = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(5))
    with STATES[name]():
        before = state()
        done = tersor.compress(task, recipe, engine, threads=1, report=False, progress=False)
        done.save(tmp_path / "out")
        loaded = tersor.load(tmp_path / "out", threads=1)
        assert state() == before
        output = loaded(x)
    assert same({n: v.clone() for n, v in done.network.tensors()} | {"output": output}, reference)


def test_compressions_in_threads_take_turns_and_are_those_of_one_thread(wanted):
    tasks = [small_task(seed) for seed in (0, 1, 0)]  # one after the other, for the seed is the whole process's
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(result_of, tasks))
    assert same(found[0], wanted)
    assert same(found[2], wanted)
    assert not same(found[1], wanted)


def test_one_thread_at_a_time_works_and_may_within_its_own_work():
    inside, most = [], []

    @in_turn
    def work(again=True):
        inside.append(1)
        most.append(len(inside))
        if again:
            work(False)
        inside.clear()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 2] * 8


def test_an_error_gives_the_turn_and_the_state_back():
    with STATES["float64"]():
        before = state()
        with pytest.raises(ZeroDivisionError), turn():
            raise ZeroDivisionError
        assert state() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_turn(lambda: 7)).result(timeout=10) == 7
