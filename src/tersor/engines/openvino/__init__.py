"""OpenVINO: the default engine. The graph is converted directly; Tersor's quantizers become FakeQuantize."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.engines.base import Account, Runner, require
from tersor.engines.options import check_options
from tersor.engines.targets import CPUS, Target, planned_for, target_of
from tersor.words import said

if TYPE_CHECKING:
    import torch

    import tersor.engines.openvino.recurrent
    import tersor.engines.openvino.runner
    import tersor.network.network
    import tersor.network.quantized.kernel
    import tersor.policy


@dataclass(frozen=True)
class OpenVINO:
    """OpenVINO's CPU plugin."""

    name: str = "openvino"
    summary: str = said("int8 on x86 and ARM CPUs; the default")
    install: str = "pip install openvino"
    libraries: tuple[str, ...] = ("tersor.engines.openvino.runner", "openvino")
    cheap: bool = True
    simulates: bool = False
    runs_modules: bool = False
    notes: tuple[str, ...] = ()
    targets: tuple[Target, ...] = CPUS
    unaudited: str = said("the engine reports no operators")
    tolerance: float = 1.0
    plain_note: str = (
        said(
            "on CPUs with BF16 products OpenVINO computes float operators in BF16 unless the model is compiled "
            "with INFERENCE_PRECISION_HINT f32, which no file can hold: set it",
        )
    )

    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            import openvino
        except ImportError:
            return None
        return str(openvino.__version__).split("-")[0]

    def policy(self, target: str | None = None) -> "tersor.policy.Policy":
        """The operators that OpenVINO's CPU plugin computes in int8.

        In a residual sum without a ReLU after it, only the shortcut is quantized: the other branch is added inside its
        convolution, and a quantizer there would be computed without its rounding. With a ReLU after it, OpenVINO fuses
        the sum only if both branches are quantized; the rounding that the simulation applies to the convolution's
        branch is then missing. A FakeQuantize with 65,536 levels rounds in float, and its consumers compute in float.
        OpenVINO reports whether this machine computes in BF16; for other targets, their description does.
        """
        from tersor.engines.openvino.lowering import GROUP
        from tersor.numerics.spec import QuantSpec
        from tersor.policy import ACTIVATIONS, AVERAGES, COMMON, LAYERS, Allowed, AtRunTime, Own, Policy, Row

        chosen = target_of(self.name, self.targets, target)
        bf16 = self._computes_bf16() if target is None else chosen.bf16
        activation = Allowed(
            QuantSpec("uint8", "tensor", symmetric=False),
            frozenset({"uint8", "int8", "int16"}),
            frozenset({"tensor"}),
            rounded=frozenset({"int16"}),
        )
        int8, per_channel = frozenset({"int8"}), frozenset({"tensor", "channel"})
        weight = Allowed(QuantSpec("int8", "channel"), int8, per_channel, symmetric=True)
        stored = Allowed(weight.default, int8 | {"int4"}, per_channel | {"group"}, symmetric=True)
        rows = (
            Row("layer", LAYERS, activation, weight),
            Row("arithmetic", frozenset({"add"}), activation, output=Own(), shortcut_only="bare"),
            Row("arithmetic", frozenset({"mul"}), activation, output=Own()),
            Row("average", AVERAGES, activation, output=Own()),
            Row("fused", ACTIVATIONS),
            Row("runtime", frozenset({"linear"}), AtRunTime(QuantSpec("int8", "token"), int8, GROUP), stored),
            Row("stored", LAYERS | {"embedding"}, weight=stored),
            *COMMON,
        )
        return planned_for(Policy(self.name, rows, half_arithmetic=frozenset({"bf16"} if bf16 else ())), chosen)

    def _computes_bf16(self) -> bool:
        """Whether this CPU has BF16 products; without them OpenVINO computes BF16 models in FP32."""
        if self.version() is None:
            return False
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def lower(self, network: "tersor.network.network.Network") -> Any:
        """The network as an openvino.Model whose operators keep our node names."""
        from tersor.engines.openvino.lowering import lowered

        return lowered(network)

    def compile(
        self, network: "tersor.network.network.Network", *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.openvino.runner.OpenVINORunner":
        """Lower the network to OpenVINO and compile it.

        A plan for another target may keep operators in BF16, which this machine computes in FP32: ``executed`` says so.

        Raises:
            EngineError: OpenVINO is not installed, or cannot convert or compile the network.
        """
        require(self)
        check_options(self, threads, precision)
        from tersor.engines.openvino.runner import OpenVINORunner

        halves = [n.name for n in network.operators() if n.meta.get("half") == "bf16"]
        note = said("this CPU has no BF16 products, so OpenVINO computes operators planned in BF16 in FP32")
        notes = dict.fromkeys(halves, note) if halves and not self._computes_bf16() else {}
        return OpenVINORunner(self.lower(network), threads, precision, notes)

    def audit(
        self, network: "tersor.network.network.Network", runner: Runner, inputs: "Sequence[torch.Tensor]" = ()
    ) -> Account:
        """The operators as the runner reports them; their numbers are checked on ``inputs``, if given."""
        from tersor.engines.onestep import account

        return account(self, network, runner, inputs)

    def load(
        self, folder: Path, *, threads: int | None = None, precision: str = "f32"
    ) -> "tersor.engines.openvino.runner.OpenVINORunner":
        """A runner for the files written by ``OpenVINORunner.save``."""
        require(self)
        check_options(self, threads, precision)
        from tersor.engines.openvino.runner import OpenVINORunner, read_model

        return OpenVINORunner(read_model(folder), threads, precision)

    def plain(self, folder: Path) -> Callable[..., Any]:
        """The model compiled with OpenVINO's defaults."""
        require(self)
        from tersor.engines.openvino.runner import plain_session

        return plain_session(folder)

    def decoder(
        self, model: Any, weights: Mapping[str, Any], threads: int | None = None, precision: str = "f32"
    ) -> Any:
        """An ``OpenVinoDecoder`` of a causal model of ``transformers`` and its weights by name.

        Raises:
            EngineError: OpenVINO is not installed or does not support the model or a weight.
            CaptureError: torch.export cannot capture the model; the message gives the offending line.
        """
        require(self)
        check_options(self, threads, precision)
        from tersor.engines.openvino.decoder import OpenVinoDecoder

        return OpenVinoDecoder.build(model, weights, threads=threads, precision=precision)


def recurrent_kernel(
    layer: "tersor.network.quantized.kernel.Recurrence", threads: int
) -> "tersor.engines.openvino.recurrent.OpenVINORecurrent":
    """A recurrent layer of a module that stays in PyTorch, computed by OpenVINO.

    Raises:
        EngineError: OpenVINO is not installed, or cannot compile the layer.
    """
    require(OpenVINO())
    from tersor.engines.openvino.recurrent import OpenVINORecurrent

    return OpenVINORecurrent(layer, threads)
