"""Which networks can be made narrower without a word of configuration, and what Torch-Pruning makes of the same.

The 16 small transformers of ``tasks/tiny.py`` and 19 networks at their published depth, of random weights. For each:
what can go, and 30 % of its multiply-accumulates gone by the step `prune`, compared with the network that has zeros in
their place. Torch-Pruning runs beside where it is installed (`pip install torch-pruning`).
"""

import re
import time
from collections import Counter
from typing import Any

import published
import tiny
from torch import nn

from benchmarks import common
from benchmarks.common import Claim, Outcome, say
from benchmarks.pruning_peer import Peer, outputs, torch_pruning
from tersor import Task
from tersor.engines import engine
from tersor.errors import TersorError
from tersor.network.groups import Kept, Structure, checked, find, macs, macs_left
from tersor.network.groups.check import TOLERANCE, difference
from tersor.network.network import Network
from tersor.network.rewrites.fold_constants import FoldConstants
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Prune, Recipe

LEAST, MOST = 0.30, 0.9
SECONDS = 10.0


def bench(quick: bool) -> Outcome:
    """At least 30 % of the multiply-accumulates can go in every one, and what is left computes what it should."""
    names = [f"tiny-{name}" for name in tiny.NETS] + list(published.NETS)
    names = ["tiny-bert", "espcn"] if quick else names
    details: dict[str, Any] = {}
    for name in names:
        say(name)
        details[name] = one(name)
        say(", ".join(f"{k} {v}" for k, v in details[name].items() if k != "fixed"))
    gone = [name for name in names if details[name].get("gone", 0) >= LEAST]
    wrong = [name for name in names if details[name].get("apart", 0) > TOLERANCE]
    missed = ", ".join(f"{n} {details[n].get('gone', details[n].get('refused'))}" for n in names if n not in gone)
    bert = details.get("bert", details[names[0]])
    claims = [
        Claim("prune_architectures", f"30 % of the MACs gone, of {len(names)}", len(gone), len(names), False,
              peer=missed),
        Claim("prune_architectures", "wrong results", len(wrong), 0, peer=", ".join(wrong)),
        Claim("prune_find_time", "BERT-base, 2x128 tokens" if "bert" in details else names[0],
              bert["find_seconds"] + bert["check_seconds"], SECONDS, unit="s"),
        *_beside(details),
    ]  # fmt: skip
    return Outcome(claims, details)


def _beside(details: dict[str, Any]) -> list[Claim]:
    """Claims against the peer: its right results are what both take."""
    verdicts = {name: found["peer"]["verdict"] for name, found in details.items() if "peer" in found}
    right = [name for name, verdict in verdicts.items() if verdict == "right"]
    kinds = Counter(verdict.split(":")[0] for verdict in verdicts.values())
    text = "Torch-Pruning: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if not right:
        return [Claim("prune_channels_found", "no network that both take", 0.0, peer=text)]
    ours, theirs = (sum(find(details[name]) for name in right) for find in (_ours, _theirs))
    least = min(right, key=lambda name: _ours(details[name]) / _theirs(details[name]))
    share = _ours(details[least]) / _theirs(details[least])
    return [
        Claim("prune_channels_found", f"the {len(right)} networks that both take", ours / theirs, 1.0, False, "×",
              peer=text),
        Claim("prune_channels_found", f"the least of them, {least}", share, 1.0, False, "×"),
    ]  # fmt: skip


def _ours(found: dict[str, Any]) -> int:
    return found["channels_free"]


def _theirs(found: dict[str, Any]) -> int:
    return found["peer"]["channels"]


def one(name: str) -> dict[str, Any]:
    """One network."""
    model, inputs = _built(name)
    task = Task(name=name, model=model, example=inputs, calibration=lambda: [inputs])
    try:
        dense = start(task, Recipe(), GraphHost(engine("torch").policy()), Stages(False))
        assert dense.network is not None
        found, structure = _found(FoldConstants()(dense.network))
        found |= _channels(structure, model) | _gone(dense, task, structure)
    except TersorError as error:
        return {"refused": str(error)}
    values = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    last = [n.rpartition(".")[0] for (n, dim), why in structure.fixed.items() if dim == 0 and why.endswith("output")]
    peer = torch_pruning(model, values, last) if len(values) == 1 else Peer("takes one input")
    return found | {"peer": vars(peer)}


def _built(name: str) -> tuple[nn.Module, Any]:
    return tiny.build(name.removeprefix("tiny-")) if name.startswith("tiny-") else published.build(name)


def _found(network: Network) -> tuple[dict[str, Any], Structure]:
    """Groups, seconds, what can go, and what cannot and why."""
    start = time.perf_counter()
    structure = find(network)
    middle = time.perf_counter()
    good = checked(structure)
    end = time.perf_counter()
    gone = [a for g in good.groups for a in g.atoms[: min(len(g) - 1, int(MOST * len(g)))].tolist()]
    can = 1 - macs_left(Kept(good, gone)) / max(1, macs(network))
    reasons = Counter(_kind(why) for (_, dim), why in good.fixed.items() if dim == 0)
    return {
        "find_seconds": middle - start, "check_seconds": end - middle, "groups": len(structure.groups),
        "groups_found_wrong": len(structure.groups) - len(good.groups), "macs": macs(network), "can_go": can,
        "fixed": dict(reasons.most_common()),
    }, good  # fmt: skip


def _kind(why: str) -> str:
    """A reason without the name of a layer."""
    why = re.sub(r"^\S+ reads them beside", "a layer reads them beside", why)
    return re.sub(r"(the operator \S+) of \S+", r"\1", re.sub(r"(nothing would be left of) \S+", r"\1 a layer", why))


def _channels(structure: Structure, model: nn.Module) -> dict[str, int]:
    """Output channels of convolutions and linear layers, and how many of them can go."""
    places: dict[str, set[int]] = {}
    for group in structure.groups:
        for (name, dim), positions in group.sites.items():
            layer = name.rpartition(".")[0]
            if name.endswith(".weight") and dim == _outputs_at(model, layer):
                places.setdefault(layer, set()).update(positions.ravel().tolist())
    every = outputs(model)
    free = {k: len(v) * every[k] // model.get_submodule(k).weight.shape[_outputs_at(model, k)]  # type: ignore[union-attr]
            for k, v in places.items() if k in every}  # fmt: skip
    return {"channels": sum(every.values()), "channels_free": sum(free.values())}


def _outputs_at(model: nn.Module, layer: str) -> int:
    try:
        return int("Transpose" in type(model.get_submodule(layer)).__name__)
    except AttributeError:
        return 0


def _gone(dense: Subject, task: Task, structure: Structure) -> dict[str, float]:
    """30 % of the multiply-accumulates gone by the step, and how far its network is from the zeroed one."""
    small = Prune(target="1.43x macs", score="magnitude", repair="none")(dense, task, Stages(False))
    before, after = small.prunings[0].macs
    third = [a for g in structure.groups for a in g.atoms[: max(1, 3 * len(g) // 10)].tolist()]
    return {"gone": 1 - after / before, "apart": difference(structure, third)}


if __name__ == "__main__":
    common.main("prune_architectures", bench)
