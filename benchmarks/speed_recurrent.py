"""LSTM and GRU of two layers, 512 wide, 64 steps: ours in engines and in PyTorch, and peers, interleaved."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import tersor
from benchmarks import common, peers
from benchmarks.common import THREADS, Claim, Outcome, milliseconds, over, quiet, say, timed
from tersor.engines.onnxruntime.runner import OnnxRuntimeRunner
from tersor.engines.openvino.runner import OpenVINORunner

WIDTH, STEPS = 512, 64
OURS = ("ours, OpenVINO", "ours, ONNX Runtime", "ours, PyTorch")
PEERS = ("torch.ao dynamic", "ONNX Runtime dynamic", "ONNX Runtime FP32", "OpenVINO FP32", "FP32 PyTorch")


class Layers(nn.Module):
    """``[batch, steps, width]`` → the last layer's outputs."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, WIDTH, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def bench(quick: bool) -> Outcome:
    """Batch 1 and 8, 2 threads: what ``engine="auto"`` would take of ours over the fastest of the peers."""
    claims: list[Claim] = []
    details: dict[str, Any] = {}
    for kind in (nn.LSTM, nn.GRU):
        subjects = compiled(kind)
        for batch in (1, 8):
            title = f"{kind.__name__}, batch {batch}"
            x = torch.randn(batch, STEPS, WIDTH)
            found = timed({name: _call(subject, x) for name, subject in subjects.items()}, quick)
            ours = min(OURS, key=lambda k: found[k].median)
            best = min((p for p in PEERS if p in found), key=lambda k: found[k].median)
            value, spread = over(found, ours, best)
            beside = ", ".join(f"{k} {v.median:.2f} ms" for k, v in found.items())
            claims.append(Claim("recurrent", f"{title}: {ours} over {best}", value, 1.05, spread=spread, peer=beside))
            value, spread = over(found, "ours, PyTorch", "torch.ao dynamic")
            claims.append(Claim("recurrent_torch", f"{title}, in PyTorch", value, 1.0, spread=spread))
            details[title] = milliseconds(found)
    return Outcome(claims, details)


def compiled(kind: type[nn.RNNBase]) -> dict[str, Any]:
    """What is timed, ready to be called."""
    torch.manual_seed(0)
    network, x = Layers(kind).eval(), torch.randn(1, STEPS, WIDTH)
    task = tersor.Task(kind.__name__, network, (x,), lambda: [(torch.randn(2, STEPS, WIDTH),)])
    options: dict[str, Any] = {"threads": THREADS, "report": False, "progress": False}
    subjects: dict[str, Any] = {}
    for name, engine in (("ours, OpenVINO", "openvino"), ("ours, ONNX Runtime", "onnxruntime")):
        say(f"{kind.__name__}: {name}")
        subjects[name] = tersor.compress(task, "int8-dynamic", engine, **options).runner
    say(f"{kind.__name__}: peers")
    subjects["ours, PyTorch"], subjects["FP32 PyTorch"] = tersor.quantize_dynamic(network, progress=False), network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subjects["torch.ao dynamic"] = torch.ao.quantization.quantize_dynamic(network, {kind}, dtype=torch.qint8)
    subjects |= onnx_peers(kind, network, x)
    subjects["OpenVINO FP32"] = OpenVINORunner(peers.openvino_model(task), THREADS)
    return subjects


def onnx_peers(kind: type[nn.RNNBase], network: nn.Module, x: Tensor) -> dict[str, Any]:
    """ONNX Runtime in float, and its own ``quantize_dynamic`` where it has an operator for the layer."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    found = {}
    with tempfile.TemporaryDirectory() as folder, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, done = Path(folder) / "plain.onnx", Path(folder) / "done.onnx"
        # The older exporter: the newer one writes no GRU operator.
        dims = {"x": {0: "batch"}}
        torch.onnx.export(network, (x,), plain, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=dims)
        found["ONNX Runtime FP32"] = OnnxRuntimeRunner(onnx.load(plain), THREADS)
        if kind is nn.LSTM:
            quantize_dynamic(plain, done, per_channel=True, weight_type=QuantType.QInt8)
            found["ONNX Runtime dynamic"] = OnnxRuntimeRunner(onnx.load(done), THREADS)
    return found


def _call(subject: Any, x: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return subject(x)

    return call


if __name__ == "__main__":
    common.main("speed_recurrent", bench)
