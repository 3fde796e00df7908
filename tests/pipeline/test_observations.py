"""Observing does not depend on what is chosen afterwards: it is saved, loaded and merged, and serves every plan."""

import dataclasses
import json
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import conv, head, warmed
from torch import nn

import tersor
from tersor.checkpoints import observations as checkpoint
from tersor.engines import engine
from tersor.errors import CalibrationError, SavedFolderError
from tersor.network.observations import Observables
from tersor.pipeline.graph.observing.observe import observables, observe
from tersor.pipeline.graph.prepare import prepare
from tersor.pipeline.graph.solve import solve
from tersor.pipeline.progress import Stages
from tersor.recipe import Quantization, Recipe, resolve

SHAPE = (3, 8, 8)
STAGES = Stages(False)
GPTQ = Recipe(weights=Quantization(solver="gptq", range="mse"), correction_samples=12)
EASY = Recipe(weights=Quantization(range="easyquant"), activations=Quantization(range="easyquant"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return warmed(nn.Sequential(conv(3, 8), conv(8, 8, act=None), head(8)), SHAPE)


@pytest.fixture(scope="module")
def convolutions():
    torch.manual_seed(0)
    return warmed(nn.Sequential(conv(3, 8), conv(8, 4, act=None)), SHAPE)


def task_on(model, batches):
    return tersor.Task("seen", model, (torch.zeros(1, *SHAPE),), lambda: batches)


def batches(*sizes):
    random = torch.Generator().manual_seed(sum(sizes))
    return [(torch.randn(n, *SHAPE, generator=random),) for n in sizes]


@cache
def planned(model, recipe):
    return prepare(task_on(model, []), recipe, engine("torch").policy())


def seen(model, data, recipe=GPTQ):
    prepared = planned(model, recipe)
    return prepared, observe(task_on(model, data), prepared.network, observables(recipe.quantize, prepared), STAGES)


def same(a, b, exact=True):
    """Whether two values of the same type hold the same numbers, to the bit or to float32 rounding."""
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name), exact) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], exact) for k in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y, exact) for x, y in zip(a, b, strict=True))
    return a == b if exact or not isinstance(a, float) else a == pytest.approx(b, rel=1e-5)


def codes(solved):
    return dict(solved.network.tensors())


@settings(max_examples=10)
@given(sizes=st.lists(st.integers(4, 9), min_size=2, max_size=6), data=st.data())
def test_two_parts_merged_are_the_whole(model, sizes, data):
    """Means are exact where the first part has as many samples as they are taken over."""
    at = data.draw(st.integers(1, len(sizes) - 1))
    every = batches(*sizes)
    (_, whole), (_, a), (_, b) = (seen(model, part) for part in (every, every[:at], every[at:]))
    merged = a.merged(b)
    assert merged.calibration.samples == whole.calibration.samples == sum(sizes)
    for name, statistics in whole.calibration.statistics.items():
        other, exact = merged.calibration.statistics[name], name.startswith("input")
        assert other.histogram.total == statistics.histogram.total
        assert other.fingerprints.counts.sum() == statistics.fingerprints.counts.sum() == sum(sizes)
        if exact:  # other values may differ in their last bits: a convolution's depend on the size of the batch
            assert same(statistics.histogram, other.histogram)
            assert same(statistics.fingerprints, other.fingerprints)
        for field in ("min", "max", "first", "ema"):
            assert same(getattr(statistics, field), getattr(other, field), exact and field != "ema")
        assert same(statistics.channels, other.channels, exact=False)
    assert same(whole.grams, merged.grams, exact=False)
    if sum(sizes[:at]) >= 12:
        assert same(whole.calibration.means, merged.calibration.means, exact=False)
        assert same(whole.first, merged.first)
    else:
        assert merged.calibration.mean_samples == sum(sizes[:at]) + min(12, sum(sizes[at:]))
        assert sum(len(batch[0]) for batch in merged.first) >= merged.calibration.mean_samples


def test_means_of_two_small_parts_are_those_of_their_samples(model):
    data = batches(4, 3)
    (_, whole), (_, a), (_, b) = (seen(model, part) for part in (data, data[:1], data[1:]))
    assert same(a.merged(b).calibration.means, whole.calibration.means, exact=False)
    assert a.merged(b).calibration.mean_samples == 7


def test_inputs_of_merged_parts_are_the_first(convolutions):
    data = batches(3, 9)
    (_, whole), (_, a), (_, b) = (seen(convolutions, part, EASY) for part in (data, data[:1], data[1:]))
    assert all(len(x) == 8 for x in whole.inputs.values())
    assert same(whole.inputs, a.merged(b).inputs, exact=False)


@pytest.mark.parametrize("recipe", [GPTQ, EASY, resolve("int8-weight")])
def test_what_was_saved_and_loaded_is_the_same_to_the_bit(convolutions, recipe, tmp_path):
    prepared, found = seen(convolutions, batches(9, 8), recipe)
    assert set(checkpoint.write(found, tmp_path)) == {p.name for p in tmp_path.iterdir()}
    loaded = checkpoint.read(tmp_path)
    assert same(found, loaded)
    a, b = (codes(solve(recipe.quantize, prepared, seen, STAGES)) for seen in (found, loaded))
    assert same(a, b)


def test_sampled_rows_are_saved_too(convolutions, tmp_path):
    from tersor.network.calibrate import calibrate

    prepared, found = seen(convolutions, batches(4), resolve("int8-weight"))
    kept = calibrate(prepared.network, found.observed.values, batches(4), keep=5)
    found = dataclasses.replace(found, calibration=kept)
    checkpoint.write(found, tmp_path)
    assert same(found, checkpoint.read(tmp_path))


@pytest.mark.slow
def test_one_pass_serves_every_recipe_and_engine(model):
    """Solved from the observations of all of them, each is what compress makes of it alone; no data is read again."""
    read, data = [], batches(16, 16)
    task = tersor.Task("seen", model, (torch.zeros(1, *SHAPE),), lambda: read.append(1) or data)
    asked = [("int8-static", "openvino"), ("int8-static", "onnxruntime"), ("int8-tflite", "torch")]
    asked += [("int8-weight", "torch")]
    ready = [(resolve(r), prepare(task, resolve(r), engine(e).policy())) for r, e in asked]
    wanted = Observables()
    for recipe, prepared in ready:
        wanted |= observables(recipe.quantize, prepared)
    found = observe(task, ready[0][1].network, wanted, STAGES)
    assert len(read) == 1
    for (recipe, prepared), (_, name) in zip(ready, asked, strict=True):
        solved = solve(recipe.quantize, prepared, found, STAGES)
        assert solved.observations.observed == observables(recipe.quantize, prepared)
        alone = tersor.compress(task_on(model, data), recipe, name, report=False, progress=False)
        assert same(codes(solved), dict(alone.network.tensors()))
    assert len(read) == 1


def test_observations_of_something_else_are_refused(model, convolutions):
    prepared, found = seen(model, batches(8))
    other, elsewhere = seen(convolutions, batches(8))
    with pytest.raises(CalibrationError, match="of another network"):
        solve(GPTQ.quantize, other, found, STAGES)
    with pytest.raises(CalibrationError, match="of different networks"):
        found.merged(elsewhere)
    with pytest.raises(CalibrationError, match="of different values or layers"):
        found.merged(seen(model, batches(8), resolve("int8-static"))[1])
    rtn = dataclasses.replace(found, observed=dataclasses.replace(found.observed, grams=frozenset()))
    with pytest.raises(CalibrationError, match=r"lack the grams conv2d, conv2d_1, linear; observe the network"):
        solve(GPTQ.quantize, prepared, rtn, STAGES)
    with pytest.raises(CalibrationError, match="means of 12 samples, but 64 are needed"):
        found.only(dataclasses.replace(found.observed, mean_samples=64))


@pytest.mark.parametrize("damage", ["cut", "format", "lacking", "absent"])
def test_files_that_are_damaged_are_named(convolutions, damage, tmp_path):
    checkpoint.write(seen(convolutions, batches(4))[1], tmp_path)
    numbers, arrays = (tmp_path / name for name in checkpoint.FILES)
    data = json.loads(numbers.read_text())
    if damage == "cut":
        arrays.write_bytes(arrays.read_bytes()[:-9])
    elif damage == "absent":
        numbers.unlink()
    else:
        data.update(format=9) if damage == "format" else data.pop("first")
        numbers.write_text(json.dumps(data))
    with pytest.raises(SavedFolderError, match=r"observations\.json: no observations that can be read"):
        checkpoint.read(tmp_path)


def test_the_callers_random_state_is_kept(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tersor.compress(task_on(model, batches(8)), engine="torch", report=False, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
