"""The commands of the page compile the C++ programs and run them; their outputs are those of the runner in Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import absent, follow, onnxruntime_headers, program

import tersor

pytestmark = pytest.mark.slow
SECTIONS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


def onnxruntime_release(folder: Path) -> None:
    """A folder with include/ and lib/, as in a release of ONNX Runtime: Debian's headers, and the wheel's library."""
    import onnxruntime

    headers = onnxruntime_headers()
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    if library is None:
        absent("this wheel of onnxruntime holds no libonnxruntime.so; pip install -U onnxruntime")
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(headers)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)


@pytest.mark.parametrize("engine", SECTIONS)
def test_outputs_are_those_of_the_runner(engine, saved, digits, clone, tmp_path):
    program("g++"), program("cmake")
    folder, x, release = clone(engine), digits(20), tmp_path / "onnxruntime"
    if engine == "onnxruntime":
        onnxruntime_release(release)
    x.tofile(folder / "inputs.f32")
    follow("cpp", SECTIONS[engine], folder, {"/opt/onnxruntime": release})
    expected = tersor.load(saved(engine))(torch.from_numpy(x)).numpy()
    found = np.fromfile(folder / "outputs.f32", np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
