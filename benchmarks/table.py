"""The table of figures to reach, filled from benchmarks/results/*.json: `python -m benchmarks.table`."""

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Claim, figure

# key of a line: (what, to reach)
LINES: dict[str, tuple[str, str]] = {
    "cifar": (
        "ResNet-20, ResNet-56, 10,000 test pictures, `int8-static` as it comes, calibrated on 512 pictures",
        "at most 0.2 points under FP32",
    ),
    "mobilenetv2": (
        "MobileNetV2, 744 photographs, as it comes, mean of five calibration draws (smallest…largest)",
        "at most 0.8 points under FP32, at least 93 % of predictions agree",
    ),
    "squeezenet": ("SqueezeNet, the same", "at most 1.0 points under FP32"),
    "per_tensor": (
        "MobileNetV2 with per-tensor weights",
        "the collapse shown; at most 2.0 points under FP32 with equalization and bias correction",
    ),
    "simulation": (
        "simulation against engine on all of the above",
        "top-1 within 0.3 points, at least 98 % of predictions agree",
    ),
    "audit": (
        "audit of ResNet-20, ResNet-50, MobileNetV2 in both engines",
        "no convolution or residual add in float",
    ),
    "one_step": (
        "the one-step check of the same: values between the engine's operators that differ from their simulation, from "
        "the engine's own inputs, by more than the engine's tolerance",
        "none",
    ),
    "simulation_mobilenetv2": ("MobileNetV2: predictions of the engine that are the simulation's", "at least 99 %"),
    "size": (
        "size on disk, every file counted",
        "ResNet-50 at least 3.9, MobileNetV2 at least 3.6 times smaller",
    ),
    "over_nncf": ("OpenVINO, batch 1, 2 threads: ours over NNCF's int8", "at most 1.05"),
    "over_fp32": (
        "the same, FP32 (pinned) over ours; BF16 and eager PyTorch beside it",
        "MobileNetV2 at least 1.8, ResNet-50 at least 4.0",
    ),
    "over_ort": ("ONNX Runtime, the same: ours over its `quantize_static` at its best", "at most 1.0"),
    "calibration": ("calibration with all estimators at once over the bare forward passes", "at most 1.5"),
    "subsampling": ("thresholds with the declared subsampling against every value counted", "within 1 %"),
    "kl": (
        "KL threshold of one tensor from its histogram; ONNX Runtime's function beside it",
        "at most 5 ms",
    ),
    "compress": ("`compress` without evaluation, ResNet-50, 128 pictures, over NNCF", "at most 1.0"),
    "memory": ("peak memory while calibrating, 64 against 1,024 pictures", "within 5 %"),
    "dynamic_sts": ("MiniLM, STS-B test, `int8-dynamic`, 100 x Spearman", "at most 0.1 points under FP32"),
    "dynamic_integer": (
        "the engine's distance from the int8-activation simulation over that from the float-activation one",
        "below 1",
    ),
    "dynamic_bits": ("textgenrnn, `int8-dynamic`", "at most 0.5 % more bits a character"),
    "dynamic_words": ("g2p, `int8-dynamic`", "at most 0.3 points more word error"),
    "dynamic_over_peers": (
        "Transformers, batch 1, 2 threads: ours (OpenVINO, the faster of int8-static and int8-dynamic) over the "
        "fastest of torch.ao dynamic, ONNX Runtime dynamic, NNCF static, NNCF int8 weights",
        "at most 1.05",
    ),
    "dynamic_in_torch": (
        "the same, staying in PyTorch: ours over torch.ao dynamic",
        "MiniLM at most 1.1, the others at most 1.0",
    ),
    "dynamic_compiled": ("the same, ours in `torch.compile` over torch.ao dynamic (eager)", "at most 0.9"),
    "static_over_nncf": ("the same, `int8-static` in OpenVINO over NNCF's int8 in OpenVINO", "at most 1.03"),
    "dynamic_over_fp32": ("the same, FP32 of the best engine (pinned; BF16 beside it) over ours", "at least 2.0"),
    "recurrent": (
        "LSTM and GRU, two layers, 512 wide, 64 steps, 2 threads: our fastest engine over the fastest of torch.ao "
        "dynamic, ONNX Runtime (dynamic and FP32), OpenVINO FP32, PyTorch",
        "at most 1.05",
    ),
    "recurrent_torch": ("the same, staying in PyTorch: ours over torch.ao dynamic", "at most 1.0"),
    "static_sts": ("MiniLM, STS-B test, `int8-static` as it comes, 100 x Spearman", "at most 0.5 points under FP32"),
    "static_vit": ("ViT-Tiny, 744 photographs, `int8-static` as it comes, top-1", "at most 0.5 points under FP32"),
    "linear_size": (
        "MiniLM on disk, OpenVINO's files and PyTorch's `state_dict`",
        "`int8-dynamic` and `int8-weight` at least 3.8, `fp16` and `bf16` at least 1.95 times smaller",
    ),
    "quantize_cost": (
        "`quantize_dynamic` on BERT-base (random weights)",
        "at most 5 s, peak memory up to the first answer at most 1.6 times the model",
    ),
    "prune_resnet": (
        "ResNet-20, unstructured zeros in one shot, no retraining, 10,000 test pictures",
        "top-1 at least 90.2 % with 50 % zeros, at least 82 % with 70 %",
    ),
    "prune_channels": (
        "ResNet-56 made narrower without training by the step `prune`, 512 pictures, 10,000 test pictures",
        "top-1 at least 89.0 % at half of the multiply-accumulates, at least 85 % at 1/2.5",
    ),
    "prune_speed": (
        "OpenVINO int8 over the same network's dense int8, one thread, measured; no training",
        "1.5 times as fast; ResNet-56 top-1 at least 90.5 %; MiniLM Spearman lost at most 1.5",
    ),
    "prune_architectures": (
        "architectures of which 30 % of the multiply-accumulates go by the step `prune` without configuration: 16 "
        "small transformers and 19 networks at their published depth, random weights",
        "all; networks that differ from those with zeros in place of what went: 0",
    ),
    "prune_channels_found": (
        "output channels that can go, over those that Torch-Pruning takes where its result is right",
        "at least 1.0",
    ),
    "prune_find_time": ("finding and checking the groups of BERT-base, 2 sentences of 128 tokens", "at most 10 s"),
    "exactobs_time": ("ExactOBS of a 512×512 layer to 50 %, over the plain loop row by row", "at most 0.1"),
    "decode_llm": (
        "decoding a random Llama of 1.1 B parameters at batch 1, OpenVINO int4, 2 threads: share of the read "
        "bandwidth measured in the same run",
        "at least 0.7",
    ),
    "llm_share": (
        "stories260k, first 200 windows of the validation text: GPTQ's loss over FP32 as a share of that of rounding "
        "to nearest over the full range",
        "4 bits per channel asymmetric at most 0.50, 3 bits per channel symmetric at most 0.35",
    ),
    "llm_order": ("the same at 4, 3 and 2 bits and every granularity", "GPTQ below rounding in all"),
    "llm_trained": (
        "stories260k, first 200 windows of the validation text, asymmetric groups of 32: loss over FP32 after training "
        "as a share of GPTQ's, both on 256 windows of the training text",
        "2 bits at most 0.5",
    ),
    "llm_pruned": (
        "stories260k pruned without training, 128 windows of the training text, first 200 windows of the validation "
        "text: loss over FP32 with repair as a share of that of the cut alone by the same score",
        "a quarter of the MLP's columns, and one of five layers: at most 0.5",
    ),
    "llm_embeddings": (
        "MiniLM at 4 and 3 bits: GPTQ's squared error of the embeddings as a share of that of rounding to nearest",
        "at most 0.5",
    ),
    "llm_sparse": (
        "stories260k and MiniLM, 50 % and 2:4 zeros",
        "magnitude loses most, a second-order method least",
    ),
    "gptq_time": (
        "GPTQ of one 4096×4096 layer at 4 bits, 2 threads, over a plain transcription of the published loop; over "
        "`gptqmodel` beside it where it is installed",
        "at most 0.5",
    ),
    "llm_memory": (
        "`int4-gptq` of a random Llama of 1.1 B parameters in BF16, 64 windows of 512 tokens: peak resident memory "
        "above that of the bare imports",
        "at most 2.5 GiB",
    ),
    "llm_resume": ("kill at a random moment and resume, five times", "the same bytes each time"),
    "train_w8a8": (
        "ResNet-20 of CIFAR-10 trained with its quantizers, W8A8, 1 epoch of 50,000 pictures, in OpenVINO and ONNX "
        "Runtime, 10,000 test pictures",
        "at most 0.1 points lost, 0 inside the interval; engine and simulation at most 0.05 points apart",
    ),
    "train_few_bits": (
        "the same with few bits, the ends in 8, top-1 of the last epoch and its 95 % interval",
        "W4A4 in 3 epochs at least 91.2 %, W3A3 in 6 at least 90.6 %, W2A2 in 5 at least 88.5 %",
    ),
    "train_weights": (
        "the same with ternary and binary weights, activations in float, 5 epochs",
        "ternary at least 90.8 %, binary at least 89.8 %",
    ),
    "train_binary": ("the same with binary weights and activations, 10 epochs", "at least 80 %"),
    "train_admm": (
        "ADMM under the straight-through estimator, ternary and binary weights, the same 5 epochs",
        "at most 0.3 points",
    ),
    "train_sparse": (
        "ResNet-20 of CIFAR-10 with 90 % zeros in float, distilled from its dense self: gradually in 10 epochs; and by "
        "OBS over magnitude, each in two rounds of pruning and 1 epoch (paired 95 % interval)",
        "at least 90.5 %; at least 0.3 points",
    ),
    "train_pruned": (
        "ResNet-56 pruned, trained back in 5 epochs, in OpenVINO int8: 1/2 and 1/2.5 of the MACs; 1.5x latency; speed",
        "at least 93.0 %, 92.7 %, 93.0 %; at least 1.5x",
    ),
    "train_peers": (
        "ours under Brevitas and torchao: the same pictures, epochs, first weights, loss and rates (paired 95 % "
        "interval)",
        "better, or 0 inside the interval",
    ),
    "train_distilled": (
        "a ResNet-8 from random weights, taught by ResNet-56: top-1 over cross-entropy alone at the same epochs",
        "the best of 10 epochs at least 0.5 points",
    ),
    "train_sentences": (
        "what MiniLM loses on the STS benchmark in 4-bit weights and 8-bit activations, trained for one epoch",
        "at most 0.3 points",
    ),
    "train_cost": ("a step of W4A4 over one of FP32, batches of 128, 2 threads", "at most 1.35"),
    "train_processes": (
        "two processes (gloo) with batches of 64 beside one with batches of 128",
        "both ranks the same; top-1 within the interval, median scale within 5 %",
    ),
    "train_resume": ("kill a training at a random moment and resume, five times", "the same bits each time"),
    "startup": ("CPU time of `tersor --version` and of help, smallest…largest of 15 processes", "at most 0.4 s"),
    "architectures": (
        "architectures that `tersor inspect` and `int8-dynamic` take without configuration",
        "16 of 16",
    ),
}


def table(results: Path = RESULTS) -> str:
    """The whole file: one row for each line, then every claim by itself."""
    found = [json.loads(path.read_text(encoding="utf8")) for path in sorted(results.glob("*.json"))]
    claims: dict[str, list[Claim]] = {key: [] for key in LINES}
    for data in found:
        for entry in data["claims"]:
            claims[entry["line"]].append(read(entry))
    parts = [
        "# Results\n\nMade by `python -m benchmarks.table` from the JSON files beside it. Ratios are of "
        "medians, p10…p90 of the ratio in each round; a loss of accuracy has its paired 95 % interval.\n",
        _summary(claims),
        *(_section(key, of_line) for key, of_line in claims.items() if of_line),
        _where(found),
    ]
    return "\n".join(parts)


def read(entry: dict[str, Any]) -> Claim:
    """A claim as `common.write` wrote it."""
    fields = {k: v for k, v in entry.items() if k != "reached"}
    return Claim(**(fields | {"spread": tuple(fields["spread"]) if fields["spread"] else None}))


def verdict(claims: list[Claim]) -> str:
    """Reached only where every claim of the line is.

    >>> verdict([Claim("kl", "a", 1.0, 5.0), Claim("kl", "b", 6.0, 5.0)])
    '**missed** (1 of 2)'
    """
    judged = [c.reached for c in claims if c.reached is not None]
    if not judged:
        return "not measured"
    missed = judged.count(False)
    return f"**missed** ({missed} of {len(judged)})" if missed else "reached"


def _summary(claims: dict[str, list[Claim]]) -> str:
    rows = ["| what | to reach | ours | peer's | verdict |", "|---|---|---|---|---|"]
    for key, (what, reach) in LINES.items():
        shown = _shown(claims[key])
        ours = "<br>".join(f"{c.what}: {figure(c)}" for c in shown)
        beside = "<br>".join(dict.fromkeys(c.peer for c in shown if c.peer))
        rows.append(f"| {what} | {reach} | {ours} | {beside} | {verdict(claims[key])} |")
    return "\n".join(rows) + "\n"


def _shown(claims: list[Claim], most: int = 8) -> list[Claim]:
    """All of a line's claims, or of many the ones nearest to their bound or beyond it."""
    if len(claims) <= most:
        return claims
    return sorted(claims, key=_margin)[: most // 2]


def _margin(claim: Claim) -> float:
    if claim.reach is None:
        return float("inf")
    ahead = claim.reach - claim.ours if claim.at_most else claim.ours - claim.reach
    return ahead / (abs(claim.reach) or 1.0)


def _section(key: str, claims: list[Claim]) -> str:
    rows = [f"## {LINES[key][0]}\n", "| what | ours | to reach | peer's | |", "|---|---|---|---|---|"]
    for c in claims:
        reach = "" if c.reach is None else f"{'≤' if c.at_most else '≥'} {c.reach:g}"
        mark = {True: "reached", False: "**missed**", None: ""}[c.reached]
        rows.append(f"| {c.what} | {figure(c)} | {reach} | {c.peer} | {mark} |")
    return "\n".join(rows) + "\n"


def _where(found: list[dict[str, Any]]) -> str:
    rows = [
        "## Where\n",
        "| bench | date | seconds | load per core | processor | versions |",
        "|---|---|---|---|---|---|",
    ]
    for data in found:
        e = data["environment"]
        versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
        cpu = f"{e['cpu']}, {e['threads']} threads"
        cells = (data["bench"], data["date"], data["seconds"], data["load_per_core"], cpu, versions)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write RESULTS.md."""
    path = RESULTS / "RESULTS.md"
    path.write_text(table(), encoding="utf8")
    print(path)


if __name__ == "__main__":
    main()
