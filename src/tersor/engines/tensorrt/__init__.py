"""The TensorRT profile: explicit QDQ ONNX as TensorRT's documentation requires. TensorRT is not run.

The file is checked by ``onnx.checker``, and ONNX Runtime computes it operator by operator, so that it can be
compared with the simulation; latency and the precision of kernels are known only on the target machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.engines.base import Account, Runner, require
from tersor.engines.onnxruntime import OnnxRuntime
from tersor.engines.options import check_options
from tersor.engines.targets import Target, target_of
from tersor.words import said

if TYPE_CHECKING:
    import torch

    import tersor.engines.tensorrt.runner
    import tersor.network.network
    import tersor.policy


@dataclass(frozen=True)
class TensorRT:
    """Files for NVIDIA's TensorRT."""

    name: str = "tensorrt"
    summary: str = said("explicit QDQ ONNX for NVIDIA TensorRT; checked here, built on the target machine")
    install: str = 'pip install "tersor[onnx]"'
    libraries: tuple[str, ...] = ("tersor.engines.tensorrt.runner", "onnxruntime")
    cheap: bool = False
    simulates: bool = False
    runs_modules: bool = False
    decoder: None = None
    notes: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    unaudited: str = said(
        "TensorRT chooses its kernels on the target machine: `trtexec --dumpLayerInfo` lists them there",
    )
    tolerance: float = 1.0
    plain_note: str = ""
    precisions: tuple[str, ...] = ("f32",)

    def version(self) -> str | None:
        """The version of ONNX Runtime, which computes the file here; None if an ONNX package is missing."""
        return OnnxRuntime().version()

    def policy(self, target: str | None = None) -> "tersor.policy.Policy":
        """int8 symmetric with zero point 0 everywhere, weights per channel; the same for every GPU.

        Layers' inputs are quantized, not their outputs, and in a residual sum only the shortcut, so that
        convolution, sum and ReLU become one kernel.
        """
        from tersor.numerics.spec import QuantSpec
        from tersor.policy import ACTIVATIONS, AVERAGES, COMMON, LAYERS, Allowed, Own, Policy, Row

        if target is not None:
            target_of(self.name, self.targets, target)
        formats, per_channel = frozenset({"int8", "fp8_e4m3"}), frozenset({"tensor", "channel"})
        activation = Allowed(QuantSpec("int8", "tensor"), formats, frozenset({"tensor"}), symmetric=True)
        weight = Allowed(QuantSpec("int8", "channel"), formats, per_channel, symmetric=True)
        rows = (
            Row("layer", LAYERS, activation, weight),
            Row("arithmetic", frozenset({"add"}), activation, shortcut_only="always"),
            Row("average", AVERAGES, activation, output=Own()),
            Row("fused", ACTIVATIONS),
            Row("stored", LAYERS, weight=weight),
            *COMMON,
        )
        return Policy(self.name, rows, target="TensorRT")

    def lower(self, network: "tersor.network.network.Network") -> Any:
        """The network as an onnx.ModelProto with explicit quantizers, checked.

        Raises:
            EngineError: ONNX cannot express the network.
        """
        require(self)
        import onnx

        from tersor.checkpoints.onnx.qdq import Style, to_onnx

        style = Style(merge_activations=False, on_codes=False, narrow_codes=False, integer_biases=False)
        model = to_onnx(network, style)
        onnx.checker.check_model(model, full_check=True)
        return model

    def compile(
        self, network: "tersor.network.network.Network", *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.tensorrt.runner.TensorRTRunner":
        """A runner of the network as checked explicit QDQ ONNX, which ONNX Runtime computes for comparison.

        Raises:
            EngineError: the ONNX packages are not installed, or ``lower`` fails.
        """
        require(self)
        check_options(self, threads, precision)
        from tersor.engines.tensorrt.runner import TensorRTRunner

        return TensorRTRunner(self.lower(network), threads)

    def audit(
        self, network: "tersor.network.network.Network", runner: Runner, inputs: "Sequence[torch.Tensor]" = ()
    ) -> Account:
        """Nothing: TensorRT is not available here, and running its file in ONNX Runtime says nothing about it."""
        return Account(())

    def load(
        self, folder: Path, *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.tensorrt.runner.TensorRTRunner":
        """A runner for the files written by ``TensorRTRunner.save``."""
        require(self)
        check_options(self, threads, precision)
        from tersor.engines.onnxruntime.runner import read_model
        from tersor.engines.tensorrt.runner import TensorRTRunner

        return TensorRTRunner(read_model(folder), threads)

    def plain(self, folder: Path) -> None:
        """None: TensorRT is not available here."""
        return None
