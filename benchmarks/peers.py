"""The peers, at their defaults and at their best: NNCF for OpenVINO, ONNX Runtime's own quantizer."""

import logging
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tersor
from benchmarks.common import THREADS, quiet
from tersor.engines.onnxruntime.runner import OnnxRuntimeRunner
from tersor.engines.openvino.runner import OpenVINORunner


def openvino_model(task: tersor.Task) -> Any:
    """The task's network converted by OpenVINO itself, with any batch."""
    import openvino as ov

    example = task.arguments(task.example)
    with quiet():
        model = ov.convert_model(task.model, example_input=example)
    model.reshape({port: [-1, *x.shape[1:]] for port, x in zip(model.inputs, example, strict=True)})
    return model


def single_pictures(task: tersor.Task) -> Iterator[np.ndarray]:
    """The calibration pictures one by one, as both peers' examples feed them."""
    for (batch,) in task.calibration():
        for picture in batch.split(1):
            yield picture.numpy()


def nncf_model(task: tersor.Task, pictures: int, best: bool = False, model: Any = None) -> Any:
    """NNCF's int8 model: its defaults, or mixed preset and accurate bias correction."""
    with quiet():
        import nncf

        nncf.set_log_level(logging.ERROR)
        options = {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False} if best else {}
        data = nncf.Dataset(single_pictures(task))
        return nncf.quantize(model or openvino_model(task), data, subset_size=pictures, **options)


def nncf_runner(task: tersor.Task, pictures: int, best: bool = False) -> OpenVINORunner:
    """The same, compiled with its precision pinned."""
    return OpenVINORunner(nncf_model(task, pictures, best), THREADS, "f32")


def nncf_transformer(task: tersor.Task, samples: int, told: bool = True) -> Any:
    """NNCF's static int8 of a network with any inputs, told that it is a Transformer or not."""
    with quiet():
        import nncf

        nncf.set_log_level(logging.ERROR)
        options = {"model_type": nncf.ModelType.TRANSFORMER} if told else {}
        data = nncf.Dataset(list(islice(_singles(task), samples)))
        return nncf.quantize(openvino_model(task), data, subset_size=samples, **options)


def _singles(task: tersor.Task) -> Iterator[list[np.ndarray]]:
    for inputs in task.calibration_batches():
        for sample in zip(*(x.split(1) for x in inputs), strict=True):
            yield [x.numpy() for x in sample]


def nncf_weights(task: tersor.Task) -> Any:
    """NNCF's int8 weights; OpenVINO quantizes activations at run time, in groups as ours."""
    from tersor.engines.openvino.lowering import GROUP
    from tersor.engines.openvino.runner import GROUP_KEY

    with quiet():
        import nncf

        model = nncf.compress_weights(openvino_model(task), mode=nncf.CompressWeightsMode.INT8_SYM)
    model.set_rt_info(str(GROUP), GROUP_KEY)
    return model


def onnx_file(task: tersor.Task, path: Path) -> None:
    """The task's network as PyTorch writes it to ONNX, with any batch."""
    example = task.arguments(task.example)
    batch = {0: torch.export.Dim("batch", min=1)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    with quiet():
        program = torch.onnx.export(
            task.model, tuple(torch.cat([x, x]) for x in example), dynamo=True, dynamic_shapes=(batch,) * len(example)
        )
        program.save(str(path), external_data=False)


def ort_model(task: tersor.Task, pictures: int, path: Path | None = None) -> Any:
    """ONNX Runtime's `quantize_static` at its best: pre-processed, per channel, uint8 activations."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.name, self.data = name, single_pictures(task)
            self.left = pictures

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            found = next(self.data, None) if self.left >= 0 else None
            return None if found is None else {self.name: found}

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, ready, done = (Path(folder) / f"{n}.onnx" for n in ("plain", "ready", "done"))
        onnx_file(task, plain)
        quant_pre_process(str(plain), str(ready))
        name = onnx.load(ready).graph.input[0].name
        quantize_static(
            ready, path or done, Reader(name), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(path or done)


def ort_runner(task: tersor.Task, pictures: int) -> OnnxRuntimeRunner:
    """The same, loaded."""
    return OnnxRuntimeRunner(ort_model(task, pictures), THREADS)
