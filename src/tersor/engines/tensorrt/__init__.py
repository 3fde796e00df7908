"""The TensorRT profile: explicit QDQ ONNX as TensorRT's documentation asks for it. TensorRT is not run.

The file is checked by ``onnx.checker``, and ONNX Runtime computes it operator by operator, so that it can be
compared with the simulation; latency and the precision of kernels are known on the target machine only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.engines.base import require
from tersor.engines.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    import tersor.engines.tensorrt.runner
    import tersor.network.network
    import tersor.policy


@dataclass(frozen=True)
class TensorRT:
    """Files for NVIDIA's TensorRT."""

    name: str = "tensorrt"
    summary: str = "explicit QDQ ONNX for NVIDIA's TensorRT; checked here, built there"
    install: str = 'pip install "tersor[onnx]"'
    libraries: tuple[str, ...] = ("tersor.engines.tensorrt.runner", "onnxruntime")
    cheap: bool = False
    simulates: bool = False
    runs_modules: bool = False
    decoder: None = None
    notes: tuple[str, ...] = ()
    unaudited: str = "TensorRT chooses its kernels on the target machine: `trtexec --dumpLayerInfo` lists them there"

    def version(self) -> str | None:
        """The version of ONNX Runtime, which computes the file here; None if an ONNX package is missing."""
        return OnnxRuntime().version()

    def policy(self) -> "tersor.policy.Policy":
        """int8 symmetric with zero point 0 everywhere, weights per channel.

        What a layer reads is quantized, not what it writes, and of a residual sum only the shortcut, so that
        convolution, sum and ReLU become one kernel.
        """
        from dataclasses import replace

        from tersor.numerics.spec import Granularity, QuantSpec
        from tersor.policy import x86

        return replace(
            x86(self.name),
            activation=QuantSpec("int8", Granularity.tensor(), symmetric=True),
            weight=QuantSpec("int8", Granularity.channel(0), symmetric=True),
            activation_formats=frozenset({"int8", "fp8_e4m3"}),
            weight_formats=frozenset({"int8", "fp8_e4m3"}),
            arithmetic=frozenset({"add"}),
            skip_branch_only="always",
        )

    def lower(self, network: "tersor.network.network.Network") -> Any:
        """The network as an onnx.ModelProto with explicit quantizers, checked.

        Raises:
            EngineError: ONNX cannot express the network, or a quantizer is not symmetric.
        """
        import onnx

        from tersor.checkpoints.onnx.qdq import Style, to_onnx
        from tersor.engines.tensorrt.runner import check_symmetric

        style = Style(merge_activations=False, on_codes=False, narrow_codes=False, integer_biases=False)
        model = to_onnx(network, style)
        check_symmetric(model)
        onnx.checker.check_model(model, full_check=True)
        return model

    def compile(
        self, network: "tersor.network.network.Network", *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.tensorrt.runner.TensorRTRunner":
        """The network as explicit QDQ ONNX, checked, and ready to be computed for comparison.

        Raises:
            EngineError: the ONNX packages are not installed, or as ``lower``.
        """
        require(self)
        from tersor.engines.tensorrt.runner import TensorRTRunner

        return TensorRTRunner(self.lower(network), threads)

    def load(
        self, folder: Path, *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.tensorrt.runner.TensorRTRunner":
        """A runner of what ``TensorRTRunner.save`` wrote."""
        require(self)
        from tersor.engines.onnxruntime.runner import read_model
        from tersor.engines.tensorrt.runner import TensorRTRunner

        return TensorRTRunner(read_model(folder), threads)
