"""ONNX Runtime on the real networks: every convolution and sum in int8, and the simulation's predictions."""

from importlib import import_module

import pytest

import tersor
from tersor.pipeline.graph.audit import audit

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize(("module", "convolutions", "sums"), [("resnet20", 19, 9), ("mobilenetv2", 52, 10)])
def test_every_convolution_and_sum_is_int8_and_predictions_agree(shared, module, convolutions, sums):
    task = import_module(module).task()
    done = tersor.compress(task, engine="onnxruntime", report=False, threads=2, progress=False)
    rows = audit(done.plan, done.runner.executed())
    assert [row.layer.name for row in rows if row.fell_back] == []
    executed = [(row.layer.op, row.executed) for row in rows if row.layer.op in ("conv2d", "add")]
    assert executed.count(("conv2d", "int8")) == convolutions
    assert executed.count(("add", "int8")) == sums
    assert len(executed) == convolutions + sums
    batches = task.calibration()
    agree = [
        done.runner(*x).argmax(1) == done.network(*x).argmax(1)
        for x, _ in zip(batches, range(4), strict=False)
    ]
    shares = [float(a.float().mean()) for a in agree]
    assert sum(shares) / len(shares) >= 0.98
