"""The claims of the long rows that `make bench-long` has measured; trains nothing itself."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import common
from benchmarks.common import Claim, Outcome
from benchmarks.train_cifar import LONGER, ROWS
from benchmarks.training.rows import LONG, unpacked
from benchmarks.training.rows import stored as read
from tersor.measure import paired_interval

Found = Mapping[str, list[dict[str, Any]]]  # what each row wrote, one for each seed
SEEDS = 3
# row: (line, what, at least)
TOP1 = {
    "w4a4": ("train_few_bits", "W4A4, 3 epochs", 91.2),
    "w3a3": ("train_few_bits", "W3A3, 6 epochs", 90.6),
    "w2a2-short": ("train_few_bits", "W2A2, 5 epochs", 88.5),
    "ternary": ("train_weights", "ternary, 5 epochs", 90.8),
    "binary": ("train_weights", "binary, 8 epochs", 89.8),
    "w1a1": ("train_binary", "binary weights and activations, 10 epochs", 80.0),
    "sparse-90": ("train_sparse", "90 % zeros in float, 10 epochs", 90.5),
}
# row: (what, at least)
PRUNED = {
    "pruned-halved": ("half of the multiply-accumulates, 5 epochs", 93.0),
    "pruned-two-fifths": ("1/2.5 of the multiply-accumulates, 5 epochs", 92.7),
    "pruned-faster": ("target 1.5x latency, 5 epochs", 93.0),
}
# row of ours: (what, rows of peers)
PEERS = {
    "w8a8-openvino": ("W8A8, 1 epoch", ("w8a8-brevitas", "w8a8-torchao")),
    "w4a4": ("W4A4, 3 epochs", ("w4a4-brevitas", "w4a4-torchao")),
    "w2a2-short": ("W2A2, 5 epochs", ("w2a2-brevitas",)),
}


def bench(quick: bool) -> Outcome:
    """What there is, with the date of each row."""
    stored = {name: [d for s in range(SEEDS) if (d := read(name, s, LONG))] for name in ROWS}
    found = {name: data for name, data in stored.items() if data}
    claims = [
        *top1(found), *in_engines(found), *admm(found), *sparse(found), *pruned(found), *over_peers(found),
        *distilled(found), *sentences(found), *safety(found),
    ]  # fmt: skip
    dates = {name: [d["date"] for d in data] for name, data in found.items()}
    hours = sum(d["seconds"] for data in found.values() for d in data) / 3600
    left = [name for name in ROWS if name not in found]
    told = f"{len(found)} of {len(ROWS)} long rows are measured ({hours:.1f} hours)"
    common.say(f"{told}; left: {', '.join(left) or 'none'}")
    return Outcome(claims, {"dates": dates, "left": left})


def top1(found: Found) -> Iterator[Claim]:
    """Top-1 of the last epoch, the mean of the seeds, with the interval of the first."""
    for row, (line, what, least) in TOP1.items():
        if data := found.get(row):
            low, high = data[0]["figures"]["interval"]
            yield Claim(line, _dated(what, data), _mean(data, "top1"), least, False, "%", (low, high), _float(data))


def in_engines(found: Found) -> Iterator[Claim]:
    """What int8 loses, and how far the engine is from its simulation."""
    for engine in ("openvino", "onnxruntime"):
        if not (data := found.get(f"w8a8-{engine}")):
            continue
        low, high = data[0]["figures"]["lost_interval"]
        text = _dated(f"{engine}, lost", data)
        yield Claim("train_w8a8", text, _mean(data, "lost"), 0.1, True, "points", (low, high), _float(data))
        text = _dated(f"{engine}, lower end of that interval", data)
        yield Claim("train_w8a8", text, low, 0.0, True, "points")
        apart = _mean(data, "apart")
        yield Claim("train_w8a8", _dated(f"{engine}, from its simulation", data), apart, 0.05, True, "points")


def admm(found: Found) -> Iterator[Claim]:
    """ADMM under the straight-through estimator."""
    for name in ("ternary", "binary"):
        ours, other = found.get(f"admm-{name}"), found.get(name)
        if ours and other:
            lost, spread = _under(ours[0], other[0])
            beside = f"ADMM {_mean(ours[:1], 'top1'):.2f} %, straight-through {_mean(other[:1], 'top1'):.2f} %"
            yield Claim("train_admm", _dated(name, ours[:1]), lost, 0.3, True, "points", spread, beside)


def sparse(found: Found) -> Iterator[Claim]:
    """What OBS gains over magnitude at the same share and as many epochs."""
    if gain := _gain(found.get("sparse-obs"), found.get("sparse-magnitude")):
        ours, other = found["sparse-obs"], found["sparse-magnitude"]
        beside = f"OBS {_mean(ours[:1], 'top1'):.2f} %, magnitude {_mean(other[:1], 'top1'):.2f} %"
        text = _dated("OBS over magnitude, 90 % zeros in two rounds of 1 epoch", ours[:1])
        yield Claim("train_sparse", text, gain[0], 0.3, False, "points", gain[1], beside)


def pruned(found: Found) -> Iterator[Claim]:
    """ResNet-56 in OpenVINO int8, narrower and trained back: top-1, speed, distance to the simulation."""
    for row, (what, least) in PRUNED.items():
        if not (data := found.get(row)):
            continue
        first, text = data[0]["figures"], _dated(f"ResNet-56, {what}", data)
        low, high = first["interval"]
        beside = f"FP32 {first['float_top1']:.2f} %, before training {first['before']:.4g} lost on held-out pictures"
        yield Claim("train_pruned", f"{text}, int8", _mean(data, "top1"), least, False, "%", (low, high), beside)
        reach, faster = (1.5 if row == "pruned-faster" else None), f"{text}, speed over dense int8"
        yield Claim("train_pruned", faster, first["faster"], reach, False, "x", first["spread"])
        yield Claim("train_pruned", f"{text}, engine from simulation", _mean(data, "apart"), 0.1, True, "points")


def over_peers(found: Found) -> Iterator[Claim]:
    """What we lose against each peer on the same pictures: reached where that may be nothing."""
    for row, (what, peers) in PEERS.items():
        for peer in peers:
            ours, other = found.get(row), found.get(peer)
            if not ours or not other:
                continue
            lost, (low, high) = _under(ours[0], other[0])
            library = peer.rpartition("-")[2]
            versions = other[0]["figures"]["versions"]
            beside = f"{library} {versions[library]} {other[0]['figures']['top1']:.2f} %"
            # At most what chance explains: the interval of the difference then reaches 0.
            reach = max(0.0, lost - low)
            text = _dated(f"{what}, under {library}", ours[:1])
            yield Claim("train_peers", text, lost, reach, True, "points", (low, high), beside)


def distilled(found: Found) -> Iterator[Claim]:
    """What each teacher's loss adds to cross-entropy alone."""
    alone, short = found.get("distill-alone"), found.get("distill-alone-short")
    gains = {loss: _gain(found.get(f"distill-{loss}"), alone) for loss in LONGER[1:]}
    best = max((g[0] for g in gains.values() if g), default=None)
    for loss, gain in gains.items():
        if gain and alone:
            # The best is the claim; the others stand beside it.
            reach = 0.5 if gain[0] == best else None
            beside = f"alone {_mean(alone[:1], 'top1'):.2f} %"
            what = _dated(f"{loss}, 10 epochs", found[f"distill-{loss}"][:1])
            yield Claim("train_distilled", what, gain[0], reach, False, "points", gain[1], beside)
    for row in found:
        loss = row.removeprefix("distill-").removesuffix("-short")
        one_epoch = row == f"distill-{loss}-short" and loss != "alone"
        if one_epoch and (gain := _gain(found[row], short)):
            what = _dated(f"{loss}, 1 epoch", found[row][:1])
            yield Claim("train_distilled", what, gain[0], None, False, "points", gain[1])


def sentences(found: Found) -> Iterator[Claim]:
    """What MiniLM's vectors lose."""
    if data := found.get("minilm"):
        figures = data[0]["figures"]
        low, high = figures["lost_interval"]
        text = _dated("MiniLM W4A8, 1 epoch, 100 x Spearman lost", data)
        beside = f"FP32 {figures['float']:.2f}, rounded {figures['rounded']:.2f}"
        yield Claim("train_sentences", text, _mean(data, "lost"), 0.3, True, "points", (low, high), beside)


def safety(found: Found) -> Iterator[Claim]:
    """Cost, kills, processes."""
    if data := found.get("step-cost"):
        figures = data[0]["figures"]
        yield Claim("train_cost", _dated("W4A4", data), figures["ratio"], 1.35, spread=tuple(figures["spread"]))
    if data := found.get("kills"):
        kills = data[0]["figures"]["kills"]
        done = ", ".join(str(k["epochs_done"]) for k in kills)
        text, unit = _dated("W4A4", data), f"of {len(kills)} the same"
        yield Claim("train_resume", text, _mean(data, "equal"), len(kills), False, unit, peer=f"epochs done: {done}")
    if data := found.get("processes"):
        figures = data[0]["figures"]
        low, high = figures["lost_interval"]
        text = _dated("ranks with the same buffers, weights and scales", data)
        yield Claim("train_processes", text, figures["ranks_equal"], 1, False)
        lost, reach = figures["lost"], max(0.0, figures["lost"] - low)
        text = _dated("top-1 under one process", data)
        yield Claim("train_processes", text, lost, reach, True, "points", (low, high))
        text = _dated("scales apart, median", data)
        yield Claim("train_processes", text, figures["scales_apart_median"], 5, True, "%")


def _gain(ours: list[dict[str, Any]] | None, alone: list[dict[str, Any]] | None) -> Any:
    if not ours or not alone:
        return None
    lost, (low, high) = _under(ours[0], alone[0])
    return -lost, (-high, -low)


def _under(ours: dict[str, Any], other: dict[str, Any]) -> tuple[float, tuple[float, float]]:
    """Points that ours is under the other, and the paired 95 % interval; of the first seed."""
    mine, theirs = (unpacked(d["figures"]["hits"], 10_000) for d in (ours, other))
    low, high = paired_interval(theirs, mine, higher_is_better=True)
    return 100 * float((theirs - mine).mean()), (100 * low, 100 * high)


def _mean(data: list[dict[str, Any]], key: str) -> float:
    return sum(d["figures"][key] for d in data) / len(data)


def _float(data: list[dict[str, Any]]) -> str:
    return f"FP32 {data[0]['figures']['float_top1']:.2f} %"


def _dated(what: str, data: list[dict[str, Any]]) -> str:
    seeds = f", {len(data)} seeds" if len(data) > 1 else ""
    return f"{what}{seeds} ({data[0]['date']})"


if __name__ == "__main__":
    common.main("trained_cifar", bench)
