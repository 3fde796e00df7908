"""The long rows of training, one after another, each resumable by epoch: `python -m benchmarks.train_cifar [row …]`."""

import sys
from typing import Any

from benchmarks import long
from benchmarks.training.distilled import FITTING, Distilled
from benchmarks.training.peer import Peer
from benchmarks.training.pruned import Pruned
from benchmarks.training.quantized import Quantized
from benchmarks.training.rows import Row
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


def bench(names: list[str], **options: Any) -> list[str]:
    """Measure the rows that are not done yet; returns the names of those that failed."""
    return long.bench(ROWS, names, **options)


if __name__ == "__main__":
    sys.exit(long.main(ROWS, str(__doc__)))
