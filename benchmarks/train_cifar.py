"""The long rows of training, one after another, each resumable by epoch: `python -m benchmarks.train_cifar [row …]`."""

import argparse
import shutil
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.common import THREADS, say
from benchmarks.training.distilled import FITTING, Distilled
from benchmarks.training.peer import Peer
from benchmarks.training.pruned import Pruned
from benchmarks.training.quantized import Quantized
from benchmarks.training.rows import LONG, WORK, Place, Row, finished, measured
from benchmarks.training.safety import Kills, Processes, StepCost
from benchmarks.training.sentences import Sentences
from benchmarks.training.sparse import Sparse

LONGER = ("alone", "logits", "attention-transfer", "hints", "dkd")
W8A8 = Quantized("w8a8", 1, 4, "openvino")
W4A4, W2A2_SHORT = Quantized("w4a4", 3, 10), Quantized("w2a2", 5, 17)
# The short ones first.
ROWS: dict[str, Row] = {
    "step-cost": StepCost(1),
    "kills": Kills(5, 3, 2000, 8),
    "processes": Processes(1, 12_800, 3),
    "w8a8-openvino": W8A8,
    "w8a8-onnxruntime": Quantized("w8a8", 1, 4, "onnxruntime"),
    "w8a8-brevitas": Peer("brevitas", 8, W8A8, 5),
    "w8a8-torchao": Peer("torchao", 8, W8A8, 5),
    "w4a4": W4A4,
    "w4a4-brevitas": Peer("brevitas", 4, W4A4, 13),
    "w4a4-torchao": Peer("torchao", 4, W4A4, 13),
    "w2a2-short": W2A2_SHORT,
    "w2a2-brevitas": Peer("brevitas", 2, W2A2_SHORT, 21),
    "minilm": Sentences(1, 1e-4, 10),
    "sparse-magnitude": Sparse("magnitude", 1, 5),
    "sparse-obs": Sparse("obs", 1, 7),
    "pruned-halved": Pruned("halved", 5, 20),
    "pruned-two-fifths": Pruned("two-fifths", 5, 20),
    "pruned-faster": Pruned("faster", 5, 25),
    "w3a3": Quantized("w3a3", 6, 20),
    "sparse-90": Sparse("gradual", 10, 25),
    "ternary": Quantized("ternary", 5, 8),
    "binary": Quantized("binary", 8, 12),
    "admm-ternary": Quantized("admm-ternary", 5, 8),
    "admm-binary": Quantized("admm-binary", 5, 8),
    "w1a1": Quantized("w1a1", 10, 20),
    **{f"distill-{loss}": Distilled(loss, 10, 12) for loss in LONGER},
    **{f"distill-{loss}-short": Distilled(loss, 1, 3) for loss in ("alone", *FITTING) if loss not in LONGER[1:]},
}
"""All rows by name."""


def bench(
    names: list[str], *, again: bool = False, quick: bool = False, seed: int = 0, results: Path = LONG,
    work: Path = WORK,
) -> list[str]:
    """Measure the rows that are not done yet; returns the names of those that failed."""
    done = [n for n in names if not again and not quick and finished(n, ROWS[n], seed, results)]
    left, failed = [n for n in names if n not in done], list[str]()
    if done:
        say(f"done before, with the same parameters: {', '.join(done)}")
    for number, name in enumerate(left):
        minutes = sum(ROWS[n].minutes for n in left[number:])
        say(f"{name}: {len(done) + number} of {len(names)} rows done, about {minutes:.0f} minutes left")
        if again or quick:
            for old in work.glob(f"{name}-*"):
                shutil.rmtree(old)
        try:
            data = measured(name, ROWS[name], Place(work, seed, quick), None if quick else results)
        except Exception as error:  # the others shall still run
            failed.append(name)
            say(f"{name} FAILED: {type(error).__name__}: {error}")
            continue
        shown = {k: v for k, v in data["figures"].items() if isinstance(v, (int, float))}
        say(f"{name}, {data['seconds'] / 60:.1f} minutes: " + ", ".join(f"{k} {v:.4g}" for k, v in shown.items()))
    return failed


def main() -> int:
    """1 where a row failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; none: all")
    parser.add_argument("--again", action="store_true", help="measure from the start what was measured before")
    parser.add_argument("--quick", action="store_true", help="512 pictures, one epoch; nothing is written")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    asked = parser.parse_args()
    if unknown := [n for n in asked.rows if n not in ROWS]:
        print(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(THREADS)
    # torch.export copies a graph whose meta holds an old-style reduce.
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    work = WORK / "quick" if asked.quick else WORK
    names = asked.rows or list(ROWS)
    failed = bench(names, again=asked.again, quick=asked.quick, seed=asked.seed, work=work)
    if failed:
        say(f"failed: {', '.join(failed)}; run again to go on from their last epoch")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
