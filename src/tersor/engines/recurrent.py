"""Engines that compute a whole recurrent layer of a module that stays in PyTorch."""

from collections.abc import Callable

import torch

from tersor.engines.onnxruntime import recurrent_kernel as onnxruntime
from tersor.engines.openvino import recurrent_kernel as openvino
from tersor.engines.targets import here
from tersor.errors import EngineError
from tersor.network.quantized.kernel import Kernel, Recurrence
from tersor.process import importing

# In order of preference. Each raises EngineError if it is not installed or does not support the layer.
KERNELS: dict[str, Callable[[Recurrence, int], Kernel]] = {"onnxruntime": onnxruntime, "openvino": openvino}


def recurrent_kernel(layer: Recurrence) -> Kernel | None:
    """A kernel that computes the layer in the first engine that supports it, with PyTorch's current number of threads.

    None if no engine does: the activations are not int8 with a scale per row, the layer is not on the CPU, its
    products saturate on this CPU, or no engine is installed.
    """
    if layer.activation.format.name != "int8" or layer.activation.granularity.kind != "token":
        return None
    if not here().exact_int8 or not all(t.device.type == "cpu" for t in layer.tensors):
        return None
    for build in KERNELS.values():
        try:
            with importing():
                return build(layer, torch.get_num_threads())
        except EngineError:
            continue
    return None
