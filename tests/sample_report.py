"""A report as it would come out for ResNet-20 on CIFAR-10: 22 layers, plausible numbers, always the same."""

import math
import random
from itertools import pairwise
from typing import Any

from tersor.measure.headline import with_headline
from tersor.measure.nulls import unknown
from tersor.measure.schema import Report

OPS = {"linear": "linear", "add": "add", "pool": "avg_pool"}
SITES = ("input", "conv1", "layer1.0.relu", "layer2.0.add", "layer3.2.relu")


def resnet20(**changes: Any) -> Report:
    """The sample; `changes` replace fields by dotted path: `resnet20(**{"ratios.speedup": 0.8})`."""
    data = _data()
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = data
        for name in parents:
            part = part[name]
        part[last] = value
    return with_headline(Report.model_validate(data))


def big() -> Report:
    """500 layers with long names and as many histograms."""
    found = layers(500)
    names = {x["name"]: f"model.encoder.blocks.{at}.attention.{x['name']}" for at, x in enumerate(found)}
    renamed = [
        dict(x, name=names[x["name"]], inputs=[names.get(y, y) for y in x["inputs"]], weights=None) for x in found
    ]
    return resnet20(layers=renamed, histograms=[histogram(f"site {at}", at % 7, 2048) for at in range(500)])


def resnet50() -> Report:
    """As large as that of ResNet-50, with names as long as those of `transformers`."""
    found = layers(121)
    names = {
        x["name"]: f"network.resnet.encoder.stages.{at // 40}.{x['name']}.convolution" for at, x in enumerate(found)
    }
    sites = list(names.values())[:71]
    renamed = []
    for at, x in enumerate(found):
        fused = at % 9 > 3
        parts = {"executed": "fused", "planned": "fused", "weight_format": None, "weights": None, "milliseconds": None}
        renamed.append({
            **x, "name": names[x["name"]], "inputs": [names.get(y, y) for y in x["inputs"]],
            "reads": [] if fused else [sites[at % 71]], **(parts if fused else {}),
        })  # fmt: skip
    audit = [
        {"name": x["name"], "op": "Convolution", "planned": "int8", "executed": "int8", "milliseconds": 0.01}
        for x in renamed[:113]
    ]
    # Behind a ReLU no value is below zero.
    drawn = [weights(name, k) for k, name in enumerate(sites)]
    for site in drawn:
        site["channels"]["low"] = [0.0] * 32
    return resnet20(task="resnet50", layers=renamed, audit=audit, histograms=drawn)


def latency(median: float, seed: int) -> dict[str, Any]:
    """Fifteen rounds around a median in ms."""
    chance = random.Random(seed)
    rounds = tuple(round(median * (1 + 0.02 * chance.gauss(0, 1)), 4) for _ in range(15))
    return {"median": median, "p10": median * 0.97, "p90": median * 1.09, "runs": 1500, "rounds": rounds}


def layers(count: int = 22) -> list[dict[str, Any]]:
    """A stem, residual blocks of three stages, one pooling, one linear layer."""
    chance = random.Random(1)
    names = ["conv1"] + [f"layer{1 + k // 6}.{k % 6 // 2}.conv{1 + k % 2}" for k in range(count - 4)]
    names += ["layer3.2.add", "avgpool", "linear"]
    found = []
    for place, name in enumerate(names):
        width = 16 << min(2, place * 3 // count)
        local = 38 - 6 * math.exp(-place) + chance.gauss(0, 2.5)
        op = "linear" if name == "linear" else "add" if "add" in name else "avg_pool" if "pool" in name else "conv2d"
        bare = op in ("add", "avg_pool")
        found.append({
            "name": name, "op": op, "planned": "int8", "executed": "fused" if op == "add" else "int8",
            "weight_format": None if bare else "int8",
            "weight_bytes": 0 if bare else width * width * 9 + 4 * width,
            "sqnr_db": round(local, 2), "accumulated_sqnr_db": round(local - 3 - 0.55 * place, 2),
            "inputs": (names[place - 1] if place else "input", *((names[max(0, place - 3)],) if op == "add" else ())),
            "reads": SITES[place : place + 1], "milliseconds": None if op == "add" else 0.01 + 0.001 * place,
            "weights": None if bare else weights(name, place),
        })  # fmt: skip
    return found


def weights(name: str, seed: int) -> dict[str, Any]:
    """A two-sided histogram, what every estimator would choose, and the range of every channel."""
    chance = random.Random(seed)
    ends = [round(0.3 + 0.5 * chance.random(), 4) for _ in range(32)]
    found = histogram("input", seed, 96)
    found["counts"] = [int(9_000 * math.exp(-((k - 48) ** 2) / 400)) for k in range(96)]
    named = {**found["thresholds"], "ema": found["thresholds"]["minmax"], "admm": found["thresholds"]["mse"]}
    channels = {"count": 256, "low": [-end for end in ends], "high": ends}
    return {**found, "site": name, "thresholds": named, "channels": channels}


def histogram(site: str, seed: int, bins: int = 512) -> dict[str, Any]:
    """A one-sided activation with a long tail (two-sided for the input), and what four estimators chose."""
    chance = random.Random(seed)
    low, high = (-2.4, 2.75) if site == "input" else (0.0, 6.0 + seed)
    edges = [low + (high - low) * k / bins for k in range(bins + 1)]
    middle = [(a + b) / 2 for a, b in pairwise(edges)]
    counts = [int(90_000 * math.exp(-abs(x) * 1.3) * (0.9 + 0.2 * chance.random())) for x in middle]
    clip = {"chosen": 0.69, "minmax": 1.0, "percentile": 0.86, "kl": 0.74, "mse": 0.69}
    thresholds = {name: (low * share, high * share) for name, share in clip.items()}
    return {"site": site, "bins": edges, "counts": counts, "thresholds": thresholds}


def _data() -> dict[str, Any]:
    return {
        "task": "resnet20-cifar10", "recipe": "int8-static", "engine": "openvino", "seed": 0,
        "environment": {
            "cpu": "Intel(R) Xeon(R) Processor", "isa": ["avx2", "avx512f", "avx512_vnni", "amx_int8"],
            "threads": 2, "precision": "f32",
            "versions": {"python": "3.11.7", "torch": "2.13.0", "openvino": "2026.4.1"},
            "system": "Linux x86_64, 2 logical processors",
        },
        "samples": {"calibration": 512, "evaluation": 10_000},
        "metric": {"name": "top-1 accuracy", "higher_is_better": True},
        "original": {
            "bytes": 1_102_614, "metric": 0.9170, "latency_ms": latency(0.492, 2), "memory_bytes": 12_390_400,
        },
        "original_eager": {"latency_ms": latency(2.31, 3)},
        "compressed": {
            "bytes": 338_112, "metric": 0.9168, "metric_interval": (-0.0011, 0.0015),
            "metric_simulated": 0.9167, "agreement": 0.9931, "latency_ms": latency(0.236, 4),
            "memory_bytes": 8_912_896,
        },
        "ratios": {
            "compression": 3.26, "speedup": 2.08, "speedup_over_eager": 9.79, "metric_drop": 0.0002,
            "speedup_spread": (1.97, 2.16),
        },
        "layers": layers(),
        "audit": [
            {"name": layer["name"], "op": "Convolution", "planned": "int8", "executed": "u8", "milliseconds": 0.01}
            for layer in layers()[:19]
        ],
        "histograms": [histogram(site, seed) for seed, site in enumerate(SITES)],
        "calibration": {
            "adequate": True, "drift": 0.012, "notes": ["512 samples; ranges moved 1.2 % in the second half"],
        },
        "timings_s": {"capture": 1.9, "calibrate": 4.2, "solve": 0.8, "compile": 0.6, "measure": 21.4},
        "peak_memory_bytes": 812_343_296,
        "warnings": ["the last calibration batch has 32 samples, the others have 64"],
    }  # fmt: skip


METRIC_PATHS = (
    "original.metric", "compressed.metric", "compressed.metric_interval", "compressed.metric_simulated",
    "compressed.agreement", "ratios.metric_drop", "samples.evaluation",
)  # fmt: skip
UNKNOWN_METRIC = unknown(METRIC_PATHS, "the task has no evaluate")
