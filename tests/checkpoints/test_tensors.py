"""Files of safetensors: their bytes, and who may read them."""

import os

import pytest
import torch
from safetensors.torch import load_file

from tersor.checkpoints.tensors import save_tensors


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_the_umask_says_who_may_read_and_the_values_come_back(mask, tmp_path):
    before = os.umask(mask)
    try:
        for value in (1.0, 2.0):  # a new file, then one that is there
            save_tensors({"x": torch.full((3,), value)}, tmp_path / "x.safetensors", {"format": "pt"})
            assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], torch.full((3,), value))
            assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)
