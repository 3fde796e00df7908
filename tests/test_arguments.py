"""Devices given by the user: found with their index, or refused with those that there are."""

import pytest
import torch
from pretended import accelerator

from tersor.arguments import computes_float64, usable_device
from tersor.errors import EngineError


@pytest.mark.parametrize("name", [None, "cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_is_always_there(name):
    assert usable_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", ["privateuseone", "privateuseone:0", torch.device("privateuseone")])
def test_an_accelerator_is_given_with_its_index(name):
    with accelerator():
        assert usable_device(name) == torch.device("privateuseone", 0)


@pytest.mark.parametrize("name", ["cuda:7", "meta", "gpu", "", "cuda:x", torch.device("meta")])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name, monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: None)
    with pytest.raises(EngineError, match=r"there is no device .* here: give one of cpu; this PyTorch has no accel"):
        usable_device(name)
    there = rf"^there is no device {name} here: give one of cpu, privateuseone:0$"
    with accelerator(), pytest.raises(EngineError, match=there):
        usable_device(name)


def test_an_index_beyond_the_last_is_refused():
    with accelerator(), pytest.raises(EngineError, match=r"no device privateuseone:1 here: .* cpu, privateuseone:0$"):
        usable_device("privateuseone:1")


def test_float64_is_tried():
    with accelerator() as device:
        assert computes_float64(device)
    with accelerator(float64=False) as device:
        assert not computes_float64(device)
