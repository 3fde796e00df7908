"""Brevitas and torchao on the same network: `benchmarks/peers_training.py` in their own environment."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import THREADS
from benchmarks.training.quantized import Quantized
from benchmarks.training.rows import Place, float_hits, judged
from tersor.recipe import Train
from tersor.tables import name_of

PYTHON = Path(os.environ.get("TERSOR_PEERS_PYTHON", sys.executable))
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Peer:
    """A library's quantizers with our pictures, epochs, first weights, loss, optimizer and rates.

    Args:
        library: brevitas or torchao.
        bits: of weights and activations.
        ours: the row that it is compared with, whose epochs and rates it takes.
        minutes: about.
    """

    library: str
    bits: int
    ours: Quantized
    minutes: float

    def settings(self, seed: int) -> dict[str, Any]:
        """Optimizer and rates of our recipe."""
        (step,) = (s for s in self.ours.made(seed).steps if isinstance(s, Train))
        return {
            "optimizer": name_of(step.optimizer), "rate": step.rate, "weight-decay": step.weight_decay,
            "warmup": step.warmup,
        }  # fmt: skip

    def about(self, seed: int) -> dict[str, Any]:
        """The library, and what it shares with ours."""
        what = {"library": self.library, "bits": self.bits, "epochs": self.ours.epochs, "seed": seed}
        return {"kind": "peer", **what, **self.settings(seed)}

    def __call__(self, place: Place) -> dict[str, Any]:
        """Train, or go on training, and judge.

        Raises:
            RuntimeError: the environment lacks the library, or it fails.
        """
        sizes, options = place.sizes, self.settings(place.seed)
        options |= {
            "bits": self.bits, "epochs": place.epochs(self.ours.epochs), "seed": place.seed, "threads": THREADS,
            "pictures": sizes["pictures"], "judged": sizes["judged"], "folder": place.folder,
        }  # fmt: skip
        command = [str(PYTHON), "-m", "benchmarks.peers_training", self.library]
        command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment())
        if done.returncode:
            raise RuntimeError(
                f"{self.library} in {PYTHON} (TERSOR_PEERS_PYTHON) failed: {done.stderr.strip()[-500:]}"
            )
        result = json.loads((place.folder / "result.json").read_text(encoding="utf8"))
        found = torch.tensor(result["hits"], dtype=torch.float32)
        about = {"training": result["training"], "versions": result["versions"]}
        return judged(found, float_hits("torch", sizes["judged"])) | about


def _environment() -> dict[str, str]:
    """Without our own packages."""
    from pictures import shared

    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TERSOR_SHARED": str(shared())}
