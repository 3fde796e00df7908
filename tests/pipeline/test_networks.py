"""Networks that nobody here has seen: compressed as they come, they agree with their simulation in the engine."""

import pytest
import torch
from agreement import check
from parts import distance, draw, flat, plain, task_of
from zoo import NETWORKS

import tersor

# Each stands for a family; the others run with the slow tests.
FAST = ("unet", "dict")
# Grouped transposed convolutions are float in OpenVINO unless their channels fill its blocks, as the audit says.
# Nor does it add a convolution's own input inside the convolution.
FALLS_BACK = {"grouped": {"2"}, "inplace": {"add"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_families(name):
    torch.manual_seed(0)
    check(*NETWORKS[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(FAST)))
def test_the_others(name):
    torch.manual_seed(0)
    check(*NETWORKS[name](), FALLS_BACK.get(name, frozenset()))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"cnn3d"}))
def test_in_onnxruntime(name):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, shape = NETWORKS[name]()
    task = task_of(model, shape)
    done = tersor.compress(task, engine="onnxruntime", report=False, progress=False)
    inputs = draw((shape,), 5, 77)
    for a, b, c in zip(
        plain(task.model, *inputs), flat(done.network(*inputs)), flat(done.runner(*inputs)), strict=True
    ):
        assert distance(b, a) < 0.08
        assert distance(c, b) <= 0.5 * distance(b, a) + 1e-5
