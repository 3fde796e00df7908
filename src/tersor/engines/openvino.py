"""OpenVINO: the default engine. The graph goes to it directly; our quantizers become its FakeQuantize."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.engines.base import Executed
from tersor.engines.openvino_audit import account
from tersor.engines.openvino_graph import MARK, readable
from tersor.engines.openvino_pools import plain_pools
from tersor.engines.openvino_quantizers import dequantize, fake_quantize, float_inputs
from tersor.errors import EngineError
from tersor.network.network import Network, op_name
from tersor.policy import Policy, x86

NAME = "openvino"
# Neighbours of a token that share a scale when it is quantized at run time, and where a saved model says so.
GROUP = 128
GROUP_KEY = ["tersor", "runtime_group"]
FILES = ("model.xml", "model.bin")


def policy() -> Policy:
    """What OpenVINO's CPU plugin computes in int8.

    Of a residual sum that no ReLU follows only the shortcut is quantized: the other branch is added inside its
    convolution, and a quantizer there would be computed without its rounding. Where a ReLU follows, OpenVINO merges
    the sum only if both branches are quantized; the rounding that the simulation makes on the convolution's
    branch is then missing. Its FakeQuantize of 65,536 levels rounds in float, and what reads it computes in float.
    """
    common = x86(NAME)
    return replace(
        common,
        activation_formats=common.activation_formats | {"int16"},
        rounded=frozenset({"int16"}),
        stored_formats=frozenset({"int4"}),
        half_arithmetic=frozenset({"bf16"} if _computes_bf16() else ()),
        skip_branch_only="bare",
        runtime_formats=frozenset({"int8"}),
        runtime_group=GROUP,
        stores_embeddings=True,
    )


def version() -> str | None:
    """The installed version, or None."""
    try:
        import openvino
    except ImportError:
        return None
    return str(openvino.__version__).split("-")[0]


def _computes_bf16() -> bool:
    """Whether this CPU has BF16 products; without them OpenVINO computes in FP32, whatever a model says."""
    if version() is None:
        return False
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def lower(network: Network) -> Any:
    """The network as an openvino.Model whose operators keep our node names."""
    import openvino as ov
    from openvino.frontend.pytorch import ConversionExtension
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    module = readable(float_inputs(network, GROUP))
    extensions = [
        ConversionExtension("tersor.fake_quantize.default", fake_quantize),
        ConversionExtension("tersor.dequantize.default", dequantize),
        ConversionExtension("tersor.quantize_rows.default", lambda context: [context.get_input(0)]),
        ConversionExtension("aten.softmax.int", _softmax),
    ]
    try:
        model = ov.convert_model(TorchFXPythonDecoder(module, dynamic_shapes=True), extension=extensions)
    except Exception as error:
        raise EngineError(f"OpenVINO cannot convert this network: {first_lines(error)}") from error
    batch = -1 if network.dynamic_batch else None
    shapes = {}
    for port, example in zip(model.inputs, network.example, strict=True):
        port.get_node().set_element_type(ov.Type(example.numpy().dtype))
        shapes[port] = [batch or example.shape[0], *example.shape[1:]] if example.ndim else []
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot give this network its shapes: {first_lines(error)}") from error
    if any(op_name(n) == "quantize_rows" for n in network.operators()):
        model.set_rt_info(str(GROUP), GROUP_KEY)
    plain_pools(model)
    _share_bounds(model)
    _shorten_names(model)
    for port, name in zip(model.inputs, network.input_names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, network.output_names, strict=True):
        port.get_tensor().set_names({name})
    return model


def _share_bounds(model: Any) -> None:
    """Equal bounds of FakeQuantize become one constant: the converter makes four of its own for each."""
    shared: dict[bytes, Any] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "FakeQuantize":
            for k in range(1, 5):
                source = op.input(k).get_source_output()
                constant = source.get_node()
                if constant.get_type_name() == "Constant":
                    key = constant.get_data().tobytes() + str(source.get_shape()).encode()
                    op.input(k).replace_source_output(shared.setdefault(key, source))


def _shorten_names(model: Any) -> None:
    """Our node's name and a number: in small networks the names would outweigh the weights."""
    for number, op in enumerate(model.get_ordered_ops()):
        owner, found, _ = op.get_friendly_name().partition(MARK)
        op.set_friendly_name(f"{owner}/{number}" if found else f"/{number}")
        for port in op.outputs():
            port.get_tensor().set_names(set())


def _softmax(context: Any) -> Any:
    from openvino import opset13 as ops

    return ops.softmax(context.get_input(0), context.get_values_from_const_input(1)).outputs()


def compile_model(model: Any, threads: int, precision: str, options: dict[str, Any]) -> Any:
    """A model compiled for the CPU, with its threads and float arithmetic pinned, for one request at a time.

    Raises:
        EngineError: where OpenVINO cannot compile it.
    """
    import openvino as ov

    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        **options,
    }
    try:
        return ov.Core().compile_model(model, "CPU", options)
    except Exception as error:
        raise EngineError(f"OpenVINO cannot compile this network: {first_lines(error)}") from error


def _compile(model: Any, threads: int, precision: str) -> Any:
    group = int(model.get_rt_info(GROUP_KEY).astype(str)) if model.has_rt_info(GROUP_KEY) else 0
    # Heeded by products with compressed weights; left alone, it is 32.
    return compile_model(model, threads, precision, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group})


def first_lines(error: Exception) -> str:
    """What an error of OpenVINO says, in one line."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]


class OpenVINORunner:
    """A compiled network whose float arithmetic is pinned to one precision.

    A batch of 1 gets a model of its own fixed shape, which is faster; the model for all other batches is
    compiled when the first of them comes.
    """

    def __init__(self, model: Any, threads: int | None = None, precision: str = "f32") -> None:
        self.model = model
        self.threads = threads or torch.get_num_threads()
        self.precision = precision
        self._dynamic = all(
            p.partial_shape[0].is_dynamic for p in model.inputs if p.partial_shape.rank.get_length()
        )
        self._runtime = model.has_rt_info(GROUP_KEY)
        self._compiled: dict[bool, Any] = {}
        self._for(single=self._dynamic)

    def _for(self, single: bool) -> Any:
        if single not in self._compiled:
            model = self.model
            if single:
                model = model.clone()
                model.reshape(
                    {
                        p: [1, *list(p.partial_shape)[1:]]
                        for p in model.inputs
                        if p.partial_shape.rank.get_length()
                    }
                )
            self._compiled[single] = _compile(model, self.threads, self.precision)
        return self._compiled[single]

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the network on tensors; one tensor comes back, or a tuple where there are several outputs.

        Raises:
            EngineError: where an input has another shape or dtype than the network takes.
        """
        single = self._dynamic and all(x.shape[0] == 1 for x in inputs if x.ndim)
        compiled = self._for(single)
        arrays = [x.detach().contiguous().numpy() for x in inputs]
        try:
            results = compiled(arrays, share_inputs=True)
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise EngineError(f"OpenVINO refuses inputs of shapes {shapes}: {first_lines(error)}") from error
        outputs = tuple(torch.from_numpy(np.array(results[k])) for k in range(len(compiled.outputs)))
        return outputs[0] if len(outputs) == 1 else outputs

    def executed(self) -> list[Executed]:
        """Every operator of the compiled model with the precision it runs in, by OpenVINO's own account.

        What depends on no input is computed once while compiling and is left out.
        """
        return account(self.model, self._for(self._dynamic).get_runtime_model(), self._runtime)

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the model's own files into ``folder``; their names are returned."""
        return save_model(self.model, folder)


def save_model(model: Any, folder: Path) -> tuple[str, ...]:
    """Write a model's files into an existing folder; their names are returned."""
    import openvino as ov

    ov.save_model(model, folder / FILES[0], compress_to_fp16=False)
    # A third of the file is indentation.
    text = (folder / FILES[0]).read_text(encoding="utf8")
    (folder / FILES[0]).write_text(re.sub(r">\s+<", "><", text), encoding="utf8")
    return FILES


def read_model(folder: Path) -> Any:
    """The openvino.Model that ``save_model`` wrote; EngineError where it cannot be read."""
    import openvino as ov

    try:
        return ov.Core().read_model(folder / FILES[0])
    except Exception as error:
        raise EngineError(f"OpenVINO cannot read {folder / FILES[0]}: {first_lines(error)}") from error


def compile(network: Network, *, threads: int | None = None, precision: str = "f32") -> OpenVINORunner:
    """Lower the network to OpenVINO and compile it.

    Raises:
        EngineError: where OpenVINO is not installed, or cannot convert or compile the network.
    """
    require()
    return OpenVINORunner(lower(network), threads, precision)


def load(folder: Path, *, threads: int | None = None, precision: str = "f32") -> OpenVINORunner:
    """A runner of what ``OpenVINORunner.save`` wrote."""
    require()
    return OpenVINORunner(read_model(folder), threads, precision)


def require() -> None:
    """Raise EngineError, with the command that helps, where OpenVINO is not installed."""
    if version() is None:
        raise EngineError("the engine `openvino` is not installed; run: pip install openvino")
