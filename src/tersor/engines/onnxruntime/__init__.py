"""ONNX Runtime on the CPU: it runs the network as explicit QDQ ONNX, which is also the deployed file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.engines.base import Account, Runner, require
from tersor.engines.options import check_options
from tersor.engines.targets import CPUS, Target, planned_for, target_of
from tersor.words import said

if TYPE_CHECKING:
    import torch

    import tersor.engines.onnxruntime.recurrent
    import tersor.engines.onnxruntime.runner
    import tersor.network.network
    import tersor.network.quantized.kernel
    import tersor.policy


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's CPU kernels.

    Args:
        int8_products: let products with low-bit weights quantize their inputs to int8 at run time, which is faster
            but differs from the simulation.
    """

    int8_products: bool = False
    name: str = "onnxruntime"
    summary: str = said("int8 on x86 and ARM CPUs; a portable QDQ ONNX file")
    install: str = 'pip install "tersor[onnx]"'
    libraries: tuple[str, ...] = ("tersor.engines.onnxruntime.runner", "onnxruntime")
    cheap: bool = True
    simulates: bool = False
    runs_modules: bool = False
    decoder: None = None
    notes: tuple[str, ...] = ()
    targets: tuple[Target, ...] = CPUS
    unaudited: str = said("the engine reports no operators")
    tolerance: float = 1.0
    plain_note: str = ""
    precisions: tuple[str, ...] = ("f32",)

    def version(self) -> str | None:
        """The installed version; None if it or one of the ONNX packages that write its files is missing."""
        try:
            import onnx  # noqa: F401
            import onnxruntime
            import onnxscript  # noqa: F401
        except ImportError:
            return None
        return str(onnxruntime.__version__)

    def policy(self, target: str | None = None) -> "tersor.policy.Policy":
        """The operators that ONNX Runtime's CPU kernels compute in int8, and the quantizers that they need."""
        from tersor.numerics.spec import QuantSpec
        from tersor.policy import ARITHMETIC, AVERAGES, COMMON, Allowed, AtRunTime, Derived, Own, Policy, Row

        convolutions, linear = frozenset({"conv1d", "conv2d", "conv3d"}), frozenset({"linear"})
        fused = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"})
        narrow, per_channel = frozenset({"int2", "int4", "uint2", "uint4", "uint8"}), frozenset({"tensor", "channel"})
        activation = Allowed(
            QuantSpec("uint8", "tensor", symmetric=False),
            frozenset({"uint8", "int8", "int16"}),
            frozenset({"tensor"}),
            rounded=frozenset({"int16"}),
        )
        weight = Allowed(QuantSpec("int8", "channel"), frozenset({"int8"}), per_channel, symmetric=True)
        stored = Allowed(weight.default, narrow | {"int8"}, per_channel | {"group"}, multiple=16)
        at_run_time = AtRunTime(QuantSpec("uint8", "tensor", symmetric=False), frozenset({"uint8"}))
        rows = (
            Row("layer", convolutions, activation, weight, Derived(), Own()),
            Row("layer", linear, activation, weight, Derived()),
            Row("arithmetic", ARITHMETIC, activation, output=Own()),
            Row("average", AVERAGES, activation, output=Own()),
            Row("fused", fused),
            Row("runtime", linear, at_run_time, weight),
            Row("stored", convolutions | linear, weight=stored),
            *COMMON,
        )
        policy = Policy(self.name, rows, decomposes=frozenset({"silu"}))
        return planned_for(policy, target_of(self.name, self.targets, target))

    def lower(self, network: "tersor.network.network.Network") -> Any:
        """The network as an onnx.ModelProto with explicit quantizers."""
        require(self)
        from tersor.checkpoints.onnx.qdq import Style, to_onnx

        return to_onnx(network, Style(packed=True, int8_products=self.int8_products, guarded=True))

    def compile(
        self, network: "tersor.network.network.Network", *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.onnxruntime.runner.OnnxRuntimeRunner":
        """Lower the network to ONNX and load it.

        Raises:
            EngineError: ONNX Runtime is not installed, the precision is not f32, or the network is rejected.
        """
        self._check(threads, precision)
        from tersor.engines.onnxruntime.runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(self.lower(network), threads)

    def audit(
        self, network: "tersor.network.network.Network", runner: Runner, inputs: "Sequence[torch.Tensor]" = ()
    ) -> Account:
        """The operators as the runner reports them; their numbers are checked on ``inputs``, if given."""
        from tersor.engines.onestep import account

        return account(self, network, runner, inputs)

    def load(
        self, folder: Path, *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.onnxruntime.runner.OnnxRuntimeRunner":
        """A runner for the files written by ``OnnxRuntimeRunner.save``."""
        self._check(threads, precision)
        from tersor.engines.onnxruntime.runner import OnnxRuntimeRunner, read_model

        return OnnxRuntimeRunner(read_model(folder), threads)

    def plain(self, folder: Path) -> Callable[..., Any]:
        """A session with ONNX Runtime's defaults."""
        require(self)
        from tersor.engines.onnxruntime.runner import plain_session

        return plain_session(folder)

    def _check(self, threads: int | None, precision: str) -> None:
        require(self)
        check_options(self, threads, precision)


def recurrent_kernel(
    layer: "tersor.network.quantized.kernel.Recurrence", threads: int
) -> "tersor.engines.onnxruntime.recurrent.OnnxRuntimeLSTM":
    """A recurrent layer of a module that stays in PyTorch, computed by ONNX Runtime.

    Raises:
        EngineError: ONNX Runtime or onnx is not installed, or does not support the layer.
    """
    require(OnnxRuntime())
    from tersor.engines.onnxruntime.recurrent import OnnxRuntimeLSTM

    return OnnxRuntimeLSTM(layer, threads)
