"""Latency of Transformers in int8: ours in OpenVINO (static, dynamic) and in PyTorch, peers interleaved."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch

import tersor
from benchmarks import common, peers
from benchmarks.common import THREADS, Claim, Outcome, milliseconds, over, quiet, say, timed
from tersor.engines.onnxruntime.runner import OnnxRuntimeRunner
from tersor.engines.openvino.runner import OpenVINORunner

# With what is asked of the module that stays in PyTorch, over torch.ao's.
NETS = (
    ("minilm", "MiniLM, 64 tokens", 1.1),
    ("bert_base", "BERT-base, 128 tokens", 1.0),
    ("vit_base", "ViT-B/16", 1.0),
)
RECIPES = ("int8-static", "int8-dynamic")
PEERS = ("torch.ao dynamic", "ONNX Runtime dynamic", "NNCF static", "NNCF int8 weights")


def bench(quick: bool) -> Outcome:
    """Batch 1, 2 threads. `int8-…` are ours in OpenVINO, `ours, PyTorch` is the module that quantize_dynamic gives."""
    claims: list[Claim] = []
    details: dict[str, Any] = {}
    for name, title, in_torch in NETS[: 1 if quick else 3]:
        task = common.task(name, quick)
        found = timed(calls(task), quick)
        beside = ", ".join(f"{k} {v.median:.2f} ms" for k, v in found.items())
        ours = min(RECIPES, key=lambda k: found[k].median)
        best = min(PEERS, key=lambda k: found[k].median)
        floats = min(("FP32", "FP32 PyTorch"), key=lambda k: found[k].median)
        for line, one, two, reach, at_most in (
            ("dynamic_over_peers", ours, best, 1.05, True),
            ("dynamic_in_torch", "ours, PyTorch", "torch.ao dynamic", in_torch, True),
            ("dynamic_compiled", "ours, torch.compile", "torch.ao dynamic", 0.9, True),
            ("static_over_nncf", "int8-static", "NNCF static", 1.03, True),
            ("dynamic_over_fp32", floats, ours, 2.0, False),
        ):
            value, spread = over(found, one, two)
            what = f"{title}: {one} over {two}"
            claims.append(Claim(line, what, value, reach, at_most, spread=spread, peer=beside))
            beside = ""
        details[title] = milliseconds(found)
    return Outcome(claims, details)


def calls(task: tersor.Task) -> dict[str, Callable[[], Any]]:
    """What is timed, on one and the same input."""
    inputs = tuple(x[:1].clone() for x in next(iter(task.calibration_batches())))
    say(f"{task.name}: compressing")
    ours = {r: tersor.compress(task, r, threads=THREADS, report=False, progress=False).runner for r in RECIPES}
    small = tersor.quantize_dynamic(task.model)
    compiled: Any = torch.compile(small)
    modules = {"ours, PyTorch": small, "ours, torch.compile": compiled, "FP32 PyTorch": task.model}
    say(f"{task.name}: peers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules["torch.ao dynamic"] = torch.ao.quantization.quantize_dynamic(task.model, {torch.nn.Linear})
    plain = peers.openvino_model(task)
    runners: dict[str, Any] = {
        **ours,
        "ONNX Runtime dynamic": ort_dynamic(task),
        "NNCF static": OpenVINORunner(peers.nncf_transformer(task, 32), THREADS),
        "NNCF int8 weights": OpenVINORunner(peers.nncf_weights(task), THREADS),
        "FP32": OpenVINORunner(plain, THREADS),
        "BF16": OpenVINORunner(plain, THREADS, "bf16"),
    }
    found = {name: (lambda r=runner: r(*inputs)) for name, runner in runners.items()}
    return found | {name: _without_gradients(module, inputs) for name, module in modules.items()}


def _without_gradients(module: torch.nn.Module, inputs: tuple[Any, ...]) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return call


def ort_dynamic(task: tersor.Task) -> OnnxRuntimeRunner:
    """ONNX Runtime's `quantize_dynamic`, per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, ready, done = (Path(folder) / f"{n}.onnx" for n in ("plain", "ready", "done"))
        peers.onnx_file(task, plain)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        model = onnx.load(ready)
        # Of the weights that its optimizer turned it keeps the old shapes, which its own check then refuses.
        del model.graph.value_info[:]
        quantize_dynamic(model, done, per_channel=True, weight_type=QuantType.QInt8)
        return OnnxRuntimeRunner(onnx.load(done), THREADS)


if __name__ == "__main__":
    common.main("speed_transformers", bench)
