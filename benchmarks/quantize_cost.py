"""What quantizing linear-heavy networks costs and saves: seconds and memory of BERT-base, bytes of MiniLM.

Memory is measured in a process of its own, which first imports everything and quantizes one small layer. What is
resident then (VmRSS) is the ground; the model is built, quantized and called once; the peak of resident memory
(VmHWM) above the ground, over the bytes of the model's parameters, is the figure: 1 is the float model alone. Both are
told up to the first answer, since some pack the weights when they are built and others in the first call.
"""

import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

import tersor
from benchmarks import common, peers
from benchmarks.audit import float_bytes, saved_bytes
from benchmarks.common import THREADS, Claim, Outcome, say
from tersor.measure import shipped_bytes

RECIPES = {"int8-dynamic": 3.8, "int8-weight": 3.8, "fp16": 1.95, "bf16": 1.95}


def bench(quick: bool) -> Outcome:
    """Seconds and peak memory of ``quantize_dynamic`` on BERT-base; how much smaller MiniLM's files become."""
    details: dict[str, Any] = {}
    return Outcome([*_cost(quick, details), *_sizes(quick, details)], details)


def _cost(quick: bool, details: dict[str, Any]) -> list[Claim]:
    found = details["BERT-base"] = {
        name: [_measured(name) for _ in range(1 if quick else 5)] for name in ("tersor", "torch.ao")
    }
    seconds, memory = ({k: [r[f] for r in v] for k, v in found.items()} for f in ("seconds", "memory"))
    theirs = median(seconds["torch.ao"]), max(memory["torch.ao"])
    ours, spread = seconds["tersor"], (min(seconds["tersor"]), max(seconds["tersor"]))
    beside = f"torch.ao dynamic, whose embeddings stay float: {theirs[0]:.2f} s, {theirs[1]:.2f} times"
    answered = [r["answered"] for r in found["tersor"]]
    name = "BERT-base, seconds to the first answer"
    first = f"torch.ao dynamic {median(r['answered'] for r in found['torch.ao']):.2f} s"
    span = min(answered), max(answered)
    return [
        Claim("quantize_cost", name, median(answered), 5.0, unit="s", spread=span, peer=first),
        Claim("quantize_cost", "BERT-base, seconds", median(ours), 5.0, unit="s", spread=spread, peer=beside),
        Claim("quantize_cost", "BERT-base, peak memory", max(memory["tersor"]), 1.6, unit="times the model"),
    ]


def _measured(name: str) -> dict[str, float]:
    say(f"BERT-base: {name}")
    command = [sys.executable, "-m", "benchmarks.quantize_cost", "--once", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def quantize_once(name: str) -> dict[str, float]:
    """Quantize BERT-base in this process: seconds, and the peak of its resident memory as said above."""
    import transformers.models.bert.modeling_bert  # noqa: F401  before the ground is measured

    _quantized(name, nn.Sequential(nn.Linear(8, 8)).eval())
    ground = _resident("VmRSS")
    task = common.task("bert_base")
    model = task.model
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    start = time.perf_counter()
    small = _quantized(name, model)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        small(*task.example)
    answered = time.perf_counter() - start
    memory = (_resident("VmHWM") - ground) / size
    return {"seconds": seconds, "answered": answered, "memory": memory, "model_bytes": size}


def _quantized(name: str, model: nn.Module) -> nn.Module:
    if name == "tersor":
        return tersor.quantize_dynamic(model, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def _resident(key: str) -> int:
    """Read from /proc, because what getrusage tells is inherited from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def _sizes(quick: bool, details: dict[str, Any]) -> list[Claim]:
    task = common.task("minilm", quick)
    before = {"OpenVINO": float_bytes(task, "openvino"), "PyTorch": _state_bytes(task.model)}
    found = details["MiniLM, bytes"] = {"FP32": before}
    beside = {} if quick else _theirs(task, before["OpenVINO"])
    claims = []
    for recipe, reach in list(RECIPES.items())[: 1 if quick else None]:
        say(f"{task.name}: {recipe}")
        done = tersor.compress(task, recipe, threads=THREADS, report=False, progress=False)
        small = tersor.quantize_dynamic(task.model, recipe, progress=False)
        found[recipe] = {"OpenVINO": saved_bytes(done), "PyTorch": _state_bytes(small)}
        for where, size in found[recipe].items():
            peer = beside.pop(recipe, "") if where == "OpenVINO" else ""
            what = f"MiniLM, {recipe}, {where}"
            claims.append(
                Claim("linear_size", what, before[where] / size, reach, False, "times smaller", peer=peer)
            )
    return claims


def _state_bytes(model: nn.Module) -> int:
    """The model's ``state_dict`` as safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, str(Path(folder) / "model.safetensors"))
        return shipped_bytes(folder)


def _theirs(task: tersor.Task, before: int) -> dict[str, str]:
    """NNCF's int8 weights, and what OpenVINO saves in half precision by itself."""
    import openvino as ov

    models = {"int8-weight": (peers.nncf_weights(task), "NNCF"), "fp16": (peers.openvino_model(task), "OpenVINO")}
    found = {}
    for recipe, (model, name) in models.items():
        with tempfile.TemporaryDirectory() as folder:
            ov.save_model(model, Path(folder) / "model.xml", compress_to_fp16=recipe == "fp16")
            found[recipe] = f"{name} {before / shipped_bytes(folder):.2f}"
    return found


if __name__ == "__main__":
    if "--once" in sys.argv:
        torch.set_num_threads(THREADS)
        print(json.dumps(quantize_once(sys.argv[-1])))
    else:
        common.main("quantize_cost", bench)
