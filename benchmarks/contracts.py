"""Contracts kept by `tersor.optimize`, one row for each network and bound: `python -m benchmarks.contracts [row …]`.

Each is beside NNCF's int8 in the same rounds of timing: its defaults, its best flags (mixed preset, accurate bias
correction), and for Transformers with and without being told so; the fastest counts.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch

import tersor
from benchmarks import common, long, peers
from benchmarks.common import THREADS, over, say, timed
from benchmarks.training.rows import Place, Row
from tersor.engines.openvino.runner import OpenVINORunner
from tersor.pipeline.graph.measuring import single

PICTURES = ("resnet20", "resnet56", "mobilenetv2", "squeezenet")
TRANSFORMERS = ("minilm", "vit_tiny", "g2p")
BOUNDS = ("0.2", "0.5", "1%")
BUDGET = "10m"


@dataclass(frozen=True)
class Contract:
    """A search, its verdict, and its speed over the fastest peer.

    Args:
        network: a task of ``benchmarks/tasks``.
        bound: what may be lost.
        budget: the time of the search.
        minutes: about.
    """

    network: str
    bound: str
    budget: str = BUDGET
    minutes: float = 14

    def about(self, seed: int) -> dict[str, Any]:
        """What is searched."""
        return {"kind": "contract", "network": self.network, "bound": self.bound, "budget": self.budget, "seed": seed}

    def __call__(self, place: Place) -> dict[str, Any]:
        """Search, or go on with it, and time the result beside the peers."""
        task = common.task(self.network)
        best = tersor.optimize(
            task, engine="openvino", max_drop=self.bound, budget="2m" if place.quick else self.budget,
            folder=place.folder, force=True, threads=THREADS, progress=False,
        )
        first = tersor.compress(task, engine="openvino", threads=THREADS, report=False, progress=False)
        runners = {"ours": best.runner, "our int8-static": first.runner, **self._peers(task)}
        assert best.network is not None
        inputs = single(best.network)
        found = timed({name: (lambda r=runner: r(*inputs)) for name, runner in runners.items()}, place.quick)
        fastest = min((name for name in found if name.startswith("NNCF")), key=lambda n: found[n].median)
        contract = best.report.contract
        speeds = {name: over(found, "ours", name) for name in ("our int8-static", fastest)}
        return {
            "times faster than the peer": 1 / speeds[fastest][0],
            "times faster than our int8-static": 1 / speeds["our int8-static"][0],
            "spreads": {name: spread for name, (_ratio, spread) in speeds.items()},
            "peer": fastest, "milliseconds": {name: latency.median for name, latency in found.items()},
            "kept": int(contract.kept), "proven": int(contract.proven), "drop": contract.drop, "bound": contract.bound,
            "interval": contract.interval, "samples": contract.samples, "needed": contract.needed,
            "apart": contract.apart, "evaluations": contract.evaluations,
            "search seconds": contract.seconds, "budget seconds": contract.budget,
            "tried": [one.model_dump() for one in contract.tried], "verdict": contract.verdict,
        }  # fmt: skip

    def _peers(self, task: tersor.Task) -> dict[str, Any]:
        say(f"{task.name}: peers")
        if self.network in PICTURES:
            return {"NNCF": peers.nncf_runner(task, 128), "NNCF, best": peers.nncf_runner(task, 128, best=True)}
        made = {"NNCF": peers.nncf_transformer(task, 128, told=False), "NNCF, told": peers.nncf_transformer(task, 128)}
        return {name: OpenVINORunner(model, THREADS, "f32") for name, model in made.items()}


ROWS: dict[str, Row] = {
    f"contract-{network.replace('_', '-')}-{bound.rstrip('%')}": Contract(network, bound)
    for bound in BOUNDS
    for network in (*PICTURES, *TRANSFORMERS)
}
"""All rows by name."""

if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    sys.exit(long.main(ROWS, str(__doc__)))
