"""ExactOBS of one layer to 50 %, over the plain loop that takes one row after the other, in the same run."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.common import Claim, Outcome, over, say
from tersor.measure.latency import summarize
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.solvers import LayerProblem, Sparsity
from tersor.solvers.obs import inverse
from tersor.solvers.prune import ExactObs

# Rows that the plain loop is timed on; all of its rows cost the same.
ROWS = 16


def bench(quick: bool) -> Outcome:
    """Seconds of a square layer, the same number from every row, in turns."""
    width = 64 if quick else 512
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(width, width, generator=draw) * 0.4 + torch.eye(width)
    gram = Gram.of((torch.randn(4 * width, width, generator=draw) @ mixed)[None]).hessian
    weight = torch.randn(width, width, generator=draw)
    problem = LayerProblem("fc", weight, QuantSpec("fp32"), gram=gram)
    inv = inverse(gram[0], 0.01, "fc")[0].float()
    result: dict[str, Tensor] = {}

    def ours() -> float:
        return clocked(lambda: result.update(ours=ExactObs()(problem, Sparsity(0.5, "row")).weight))

    def plain() -> float:
        rows = weight[:ROWS]
        return clocked(lambda: result.update(plain=row_by_row(rows, inv, width // 2))) * width / ROWS

    rounds: dict[str, list[list[float]]] = {"ours": [], "row by row": []}
    ours()
    for _ in range(1 if quick else 3):
        for name, call in (("ours", ours), ("row by row", plain)):
            say(name)
            rounds[name].append([1000 * call()])
    found = {name: summarize(blocks) for name, blocks in rounds.items()}
    value, spread = over(found, "ours", "row by row")
    same = float(((result["ours"][:ROWS] == 0) == (result["plain"] == 0)).float().mean())
    beside = (
        f"ours {found['ours'].median / 1000:.2f} s, row by row {found['row by row'].median / 1000:.1f} s "
        f"(timed on {ROWS} rows); {100 * same:.2f} % of the masks agree"
    )
    claim = Claim("exactobs_time", f"{width}×{width} to 50 %", value, 0.1, spread=spread, peer=beside)
    return Outcome([claim], {"ms": rounds, "masks_agree": same})


def clocked(part: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def row_by_row(weight: Tensor, inv: Tensor, steps: int) -> Tensor:
    """The loop of arXiv 2208.11580, algorithm 1: the inverse kept whole, and updated for every weight that goes."""
    found = weight.clone()
    for w in found:
        h, gone = inv.clone(), torch.zeros(len(w), dtype=torch.bool)
        for _ in range(steps):
            p = int((w.square() / h.diagonal()).masked_fill(gone, torch.inf).argmin())
            w -= h[:, p] * (w[p] / h[p, p])
            h -= torch.outer(h[:, p], h[p]) / h[p, p]
            gone[p] = True
            w[gone] = 0
            h.diagonal()[gone] = 1
    return found


if __name__ == "__main__":
    common.main("exactobs_time", bench)
