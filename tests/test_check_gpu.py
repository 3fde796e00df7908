"""The checks for a GPU, on the CPU and with small sizes; on a pretended device they find no difference."""

import pytest
import torch
from pretended import accelerator

from scripts import check_gpu

CPU = torch.device("cpu")
TINY = {"width": 32, "blocks": 1, "windows": 4, "length": 16}


def test_without_a_gpu_nothing_runs(monkeypatch, capsys):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: None)
    assert check_gpu.main() == 0
    assert capsys.readouterr().out == "not run: no GPU\n"


def test_the_cpu_agrees_with_itself():
    for row in (check_gpu.layer(CPU, 64), check_gpu.folder(CPU, check_gpu.ALONE, **TINY)):
        assert row.passed
        assert row.codes == row.objective == 0
        assert min(row.seconds) > 0
        assert str(row).endswith("ok")
    row = check_gpu.training(CPU, size=8, batch=4, steps=2)
    assert row.passed
    assert row.codes is None


@pytest.mark.slow
def test_a_device_whose_sums_have_another_order_passes():
    # Its kernel of attention is another one.
    with accelerator() as device:
        rows = check_gpu.layer(device, 64), check_gpu.folder(device, check_gpu.ALONE, **TINY)
    assert all(row.passed for row in rows)


def test_codes_without_a_bound_may_differ():
    assert check_gpu.Row("it", (2.0, 1.0), 0.5, 0.0, (None, 0.01)).passed


@pytest.mark.parametrize("found", [(0.5, 0.0), (0.0, 0.5), (0.0, -0.5), (0.0, float("nan")), (None, 0.5)])
def test_a_bound_that_is_exceeded_fails(found, monkeypatch, capsys):
    row = check_gpu.Row("it", (2.0, 1.0), *found, (0.01, 0.01))
    assert not row.passed
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: CPU)
    monkeypatch.setattr(check_gpu, "checks", lambda device: [row])
    assert check_gpu.main() == 1
    assert "2.0x" in capsys.readouterr().out
