"""The benchmark tasks are what their figures claim: the right weights, pictures, labels and split."""

import csv
from importlib import import_module

import pytest
import torch
from pictures import CALIBRATE, REPORT, calibration_draws, cifar10, photographs, symmetric, top1, usual

pytestmark = pytest.mark.real


def test_no_reported_photograph_calibrates():
    assert not set(CALIBRATE) & set(REPORT)
    assert (len(CALIBRATE), len(REPORT)) == (256, 744)
    for k in range(5):
        assert set(calibration_draws(k, len(CALIBRATE), 200)) <= set(CALIBRATE)


def test_draws_differ_and_repeat():
    draws = [calibration_draws(k, 256, 200) for k in range(5)]
    assert draws == [calibration_draws(k, 256, 200) for k in range(5)]
    assert len({tuple(sorted(d)) for d in draws}) == 5
    assert all(len(set(d)) == len(d) for d in draws)


@pytest.mark.parametrize(
    ("module", "least"), [("resnet20", 0.90), pytest.param("resnet56", 0.92, marks=pytest.mark.slow)]
)
def test_cifar_networks_know_the_test_pictures(shared, module, least):
    task = import_module(module).task()
    pixels, labels = cifar10("test")
    with torch.no_grad():
        scores = top1(task.model, pixels[:400], labels[:400], usual)
    assert scores.shape == (400,)
    assert scores.mean() >= least
    batches = [x for (x,) in task.calibration()]
    assert [len(x) for x in batches] == [64] * 8
    assert torch.equal(batches[0], usual(cifar10("train0")[0][:64].float()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "transform", "least"), [("mobilenetv2", symmetric, 0.8), ("squeezenet", usual, 0.5)]
)
def test_photograph_networks_know_the_calibration_pictures(shared, module, transform, least):
    task = import_module(module).task(draw=0)
    (batch,) = next(iter(task.calibration()))
    first = torch.stack(list(photographs(range(32)))).float()
    assert torch.equal(batch, transform(first))
    with (shared / "data/imagenet-nips17/labels.csv").open(newline="") as table:
        labels = torch.tensor([int(row["label"]) for row in csv.DictReader(table)][:32])
    with torch.no_grad():
        assert (task.model(batch).argmax(1) == labels).float().mean() >= least
    assert {int(p[0].shape[0]) for p in task.calibration()} == {32}
