"""The commands of the page, in processes that can import neither PyTorch nor Tersor."""

import numpy as np
import pytest
import torch
from deployed import follow

import tersor

pytestmark = pytest.mark.slow
SECTIONS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


@pytest.mark.parametrize("engine", SECTIONS)
def test_outputs_are_those_of_the_runner(engine, saved, digits, clone):
    folder, x = clone(engine), digits(100)
    np.save(folder / "inputs.npy", x)
    (folder / "sitecustomize.py").write_text(
        'import sys\nsys.modules.update(dict.fromkeys(("torch", "tersor", "onnx")))\n'
    )
    follow("python", SECTIONS[engine], folder, PYTHONPATH=str(folder))
    expected = tersor.load(saved(engine))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.load(folder / "outputs.npy"), expected, rtol=0, atol=1e-5)
