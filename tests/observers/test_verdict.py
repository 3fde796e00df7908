"""What is said about calibration data, good and bad."""

import pytest
import torch

from tersor.errors import CalibrationError
from tersor.observers import assess, observe


def sites(stream):
    gathered = {}
    for x in stream:
        for name, y in (("input", x), ("hidden", (x @ torch.full((8, 8), 0.1)).relu())):
            gathered[name] = observe(gathered.get(name), y)
    return gathered


def draws(batches, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(16, 8, generator=generator) for _ in range(batches)]


def test_good_data_has_no_warnings():
    verdict = assess(sites(draws(10)))
    assert verdict.warnings == ()
    assert verdict.samples == 160
    assert verdict.repeated == 0
    assert set(verdict.moved) == {"input", "hidden"}
    assert all(0 <= share < 0.1 for share in verdict.moved.values())


def test_too_few_samples():
    assert ["16 calibration samples" in w for w in assess(sites(draws(1))).warnings] == [True]


@pytest.mark.parametrize("again", [lambda b: b + b[:5], lambda b: [torch.cat((x, x.flip(0))) for x in b]])
def test_repeated_batches_and_repeated_samples(again):
    verdict = assess(sites(again(draws(10))))
    assert verdict.repeated == pytest.approx(1 / 3, abs=1e-9) or verdict.repeated == pytest.approx(0.5)
    assert len(verdict.warnings) == 1
    assert "repeat" in verdict.warnings[0]


def test_a_tensor_poor_in_values_is_no_repetition():
    stream = sites(draws(10))
    mask = observe(None, torch.ones(160, 8))
    assert assess({**stream, "mask": mask}).repeated == 0


def test_ranges_that_still_move():
    verdict = assess(sites(draws(5) + [5 * x for x in draws(5, 1)]))
    assert len(verdict.warnings) == 1
    assert "widened 2 of 2 ranges" in verdict.warnings[0]
    assert verdict.moved["input"] == pytest.approx(0.8, abs=0.02)


def test_a_single_sample_has_no_halves():
    verdict = assess({"input": observe(None, torch.rand(1, 3))})
    assert verdict.moved == {"input": None}


def test_nothing_to_judge():
    with pytest.raises(CalibrationError, match="no site"):
        assess({})
