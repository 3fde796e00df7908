"""What run-time quantization costs: MiniLM, textgenrnn and g2p in OpenVINO and in PyTorch."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from encoder import Benchmark
from pictures import shared
from torch import nn

import tersor
from benchmarks import common
from benchmarks.common import THREADS, Claim, Outcome, say
from tersor.engines.numbers import check_numbers


def bench(quick: bool) -> Outcome:
    """Points of Spearman's correlation, bits a character, words said wrong; each beside FP32 and torch.ao."""
    details: dict[str, Any] = {}
    claims = [*_sentences(quick, details), *_characters(quick, details), *_words(quick, details)]
    return Outcome(claims, details)


def _ao(model: nn.Module) -> nn.Module:
    """torch.ao's dynamic quantization, as it comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.Linear, nn.LSTM, nn.GRU}
        return torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)


def few_sentences() -> tersor.Task:
    """MiniLM in short: one calibration batch, and 64 of the 1,379 pairs judge."""
    test = Benchmark(shared() / "data/minilm-stsb", "test")
    test.sentences, test.scores = test.sentences[:128], test.scores[:64]
    return replace(common.task("minilm", quick=True), evaluate=test.spearman)


def _sentences(quick: bool, details: dict[str, Any]) -> list[Claim]:
    task = few_sentences() if quick else common.task("minilm")
    assert task.evaluate is not None
    done = tersor.compress(task, "int8-dynamic", threads=THREADS, report=False, progress=False)
    weights = tersor.compress(task, "int8-weight", threads=THREADS, report=False, progress=False)
    subjects = {
        "FP32": task.model,
        "ours": done.runner,
        "ours, PyTorch": tersor.quantize_dynamic(task.model),
        "int8-weight, OpenVINO": weights.runner,
        "torch.ao dynamic": _ao(task.model),
    }
    found = details["MiniLM"] = {}
    for name, subject in subjects.items():
        say(f"{task.name}: {name}")
        with torch.inference_mode():
            found[name] = task.evaluate(subject)
    beside = ", ".join(f"{k} {v:.2f}" for k, v in found.items())
    claims = [
        Claim("dynamic_sts", "MiniLM, OpenVINO", found["FP32"] - found["ours"], 0.1, unit="points", peer=beside),
        Claim("dynamic_sts", "MiniLM, PyTorch", found["FP32"] - found["ours, PyTorch"], 0.1, unit="points"),
    ]
    inputs = next(iter(task.calibration_batches()))
    assert done.network is not None
    assert weights.network is not None
    numbers = check_numbers(done.runner, done.network, weights.network, inputs)
    apart = f"{numbers.to_float:.4f} from the simulation with float activations, {numbers.to_simulation:.4f} from int8"
    share = numbers.to_simulation / numbers.to_float
    return [*claims, Claim("dynamic_integer", "MiniLM, OpenVINO", share, 1.0, peer=apart)]


def _characters(quick: bool, details: dict[str, Any]) -> list[Claim]:
    found = details["textgenrnn"] = _recurrent("textgenrnn", quick)
    beside = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
    return [
        Claim("dynamic_bits", f"textgenrnn, {where}", 100 * (found[name] / found["FP32"] - 1), 0.5, unit="%", peer=peer)
        for name, where, peer in (("ours", "OpenVINO", f"bits: {beside}"), ("ours, PyTorch", "PyTorch", ""))
    ]


def _words(quick: bool, details: dict[str, Any]) -> list[Claim]:
    found = details["g2p"] = _recurrent("g2p", quick)
    beside = ", ".join(f"{k} {v:.2f}" for k, v in found.items())
    return [
        Claim("dynamic_words", f"g2p, {where}", found[name] - found["FP32"], 0.3, unit="points", peer=peer)
        for name, where, peer in (("ours", "OpenVINO", f"word error: {beside}"), ("ours, PyTorch", "PyTorch", ""))
    ]


def _recurrent(name: str, quick: bool) -> dict[str, float]:
    task = common.task(name, quick)
    assert task.evaluate is not None
    subjects = {
        "FP32": task.model,
        "ours": tersor.compress(task, "int8-dynamic", threads=THREADS, report=False, progress=False).runner,
        "ours, PyTorch": tersor.quantize_dynamic(task.model),
        "torch.ao dynamic": _ao(task.model),
    }
    found = {}
    for title, subject in subjects.items():
        say(f"{name}: {title}")
        with torch.inference_mode():
            found[title] = float(task.evaluate(subject).mean())
    return found


if __name__ == "__main__":
    common.main("accuracy_dynamic", bench)
