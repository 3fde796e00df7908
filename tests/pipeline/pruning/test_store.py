"""Measured latencies are kept: a run that was stopped chooses the same network again, and so do other processes."""

import json
import random
import threading

import pytest
import torch

import tersor
from tersor.errors import CalibrationError, RecipeError
from tersor.measure.schema import Latency
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.graph.pruning.timed import stairs, store
from tersor.pipeline.graph.pruning.timed.stairs import Clock
from tersor.pipeline.graph.pruning.timed.store import Store, shape_of_work
from tersor.recipe import Prune, Quantize, Recipe, Train
from tests.pipeline.pruning import test_prune
from tests.pipeline.pruning.test_prune import task_of

FLOAT = Quantize(**test_prune.FLOAT)

def test_the_same_question_asked_again_is_measured_again_and_a_new_run_reads_both(tmp_path):
    path, told = tmp_path / "step-1" / "latencies.json", iter(range(100))

    def measure(places):
        return [next(told) for _ in places]

    first = Store(path, {"cpu": "a"})
    assert first.each(["x", "y", "x"], measure) == [0, 1, 2]
    assert first.each(["x"], measure) == [3]
    again = Store(path, {"cpu": "a"})
    assert again.each(["x", "y", "x"], measure) == [0, 1, 2]
    assert again.each(["x", "z"], measure) == [3, 4]
    assert Store(path, {"cpu": "b"}).each(["x"], measure) == [5]
    path.write_text("{")
    assert Store(path, {"cpu": "b"}).each(["x"], measure) == [6]
    assert Store().each(["x"], measure) == [7]


def test_another_process_waits_for_what_the_first_one_measures(tmp_path, monkeypatch):
    path = tmp_path / "latencies.json"
    monkeypatch.setattr(store, "POLL", 0.01)
    first, other = Store(path), Store(path, measures=False)
    timer = threading.Timer(0.2, lambda: first.each(["x"], lambda places: [42.0]))
    timer.start()
    assert other.each(["x"], lambda places: pytest.fail("it measures")) == [42.0]
    timer.join()
    monkeypatch.setattr(store, "WAIT", 0.05)
    with pytest.raises(CalibrationError, match="the first process has not measured"):
        other.each(["y"], lambda places: [])


def test_work_is_told_apart_by_operators_and_shapes_alone():
    task = task_of()
    network = captured(task)
    same = network.edit()
    for name, tensor in list(same.tensors()):
        same.module.get_buffer(name).data = torch.zeros_like(tensor)
    assert shape_of_work(network) == shape_of_work(same)
    small = tersor.compress(
        task, Recipe(steps=(Prune(target="50% channels", rounds=1), FLOAT)), "torch", report=False, progress=False
    ).network
    assert shape_of_work(network) != shape_of_work(small)


class Noise:
    """Latencies by lot, which no two runs have in common."""

    def __init__(self):
        self.calls = 0

    def __call__(self, calls, rounds=1, min_time=0.0, **_):
        self.calls += 1
        times = {name: 1.0 if name == "dense" else random.uniform(0.3, 0.6) for name in calls}
        return {name: Latency(median=t, p10=t, p90=t, rounds=(t, t, t)) for name, t in times.items()}


@pytest.fixture
def noise(monkeypatch):
    found = Noise()
    monkeypatch.setattr(stairs, "interleave", found)
    return found


def test_a_clock_with_a_store_measures_once(tmp_path, noise):
    network = captured(task_of())
    found = []
    for _run in range(2):
        clock = Clock(lambda n: lambda *x: None, network, Store(tmp_path / "a.json"))
        found.append((clock([network, network]), clock.milliseconds()))
    assert found[0] == found[1]
    assert noise.calls == 2


def test_a_training_behind_a_latency_target_resumes_with_the_same_network(tmp_path, noise):
    task = task_of()
    batches = list(task.calibration())
    path, stopped = tmp_path / "state" / "step-1" / "latencies.json", []

    def train():
        if path.is_file() and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return batches

    object.__setattr__(task, "train", train)
    recipe = Recipe(steps=(Prune(target="1.01x latency", rounds=1), Train(epochs=1), FLOAT), seed=3)
    options = {"folder": tmp_path / "state", "report": False, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        tersor.finetune(task, recipe, "torch", **options)
    kept = json.loads(path.read_text())["values"]
    asked = noise.calls
    assert kept
    done = tersor.finetune(task, recipe, "torch", **options)
    assert noise.calls == asked
    assert done.prunings[0].faster in {1 / share[0] for share in kept.values() if isinstance(share, list)}


def test_several_processes_need_a_folder(monkeypatch, noise):
    monkeypatch.setenv("WORLD_SIZE", "2")
    task = task_of()
    recipe = Recipe(steps=(Prune(target="1.01x latency"), FLOAT))
    with pytest.raises(RecipeError, match="only with a folder"):
        tersor.compress(task, recipe, "torch", report=False, progress=False)
