"""GPTQ of one large layer at 4 bits, over a plain transcription of the published loop, in the same run.

The transcription is in float32 with blocks of 128 columns, scales from the rows' extremes and the columns by falling
diag H: what Tersor computes with ``Gptq("minmax", refine=0)``, to which the bound belongs. Tersor's default, which
searches clipped ranges and refines the codes, stands beside it.
"""

import importlib.util

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.common import Claim, Outcome, over, say
from benchmarks.exactobs_time import clocked
from tersor.measure.latency import summarize
from tersor.numerics import QuantSpec
from tersor.solvers import Gptq, LayerProblem
from tersor.solvers.output_error import output_error

BLOCK = 128


def bench(quick: bool) -> Outcome:
    """Seconds of a square layer, in turns."""
    width = 256 if quick else 4096
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * width, width, generator=draw) @ (torch.randn(width, width, generator=draw) / width**0.5)
    gram = (2 / len(x)) * x.t() @ x
    weight = torch.randn(width, width, generator=draw)
    problem = LayerProblem("fc", weight, QuantSpec("int4", "channel", symmetric=False), gram=gram[None])
    found: dict[str, Tensor] = {}
    calls = {
        "same": lambda: found.update(same=Gptq("minmax", refine=0)(problem).qtensor.dequantize()),
        "default": lambda: found.update(default=Gptq()(problem).qtensor.dequantize()),
        "plain": lambda: found.update(plain=published(weight, gram)),
    }
    rounds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for k in range(1 if quick else 6):
        for name, call in calls.items():
            say(name)
            seconds = clocked(call)
            if k or quick:  # the first warms up
                rounds[name].append([1000 * seconds])
    times = {name: summarize(blocks) for name, blocks in rounds.items()}
    errors = {name: output_error(weight, w, gram[None]) for name, w in found.items()}
    installed = importlib.util.find_spec("gptqmodel") is not None
    beside = f"plain {times['plain'].median / 1000:.1f} s; error {errors['same']:.3e} and {errors['plain']:.3e}"
    beside += "" if installed else "; gptqmodel is not installed"
    claims = []
    for name, what, reach in (("same", "the same algorithm", 0.5), ("default", "by default, refined", None)):
        value, spread = over(times, name, "plain")
        peer = beside if name == "same" else f"error {errors['default']:.3e}"
        claims.append(Claim("gptq_time", f"{width}×{width}, {what}", value, reach, spread=spread, peer=peer))
    return Outcome(claims, {"ms": rounds, "errors": errors})


def published(weight: Tensor, gram: Tensor) -> Tensor:
    """GPTQ as in the paper's algorithm 1 (arXiv 2210.17323), row and column as they stand there."""
    w, h, rows, columns = weight.clone(), gram.clone(), *weight.shape
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = (high - low) / 15
    zero = torch.round(-low / scale)
    order = h.diagonal().argsort(descending=True)
    w, h = w[:, order], h[order][:, order]
    h.diagonal().add_(0.01 * h.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    out = torch.zeros_like(w)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        part, errors, corner = w[:, start:end].clone(), torch.zeros(rows, end - start), inverse[start:end, start:end]
        for k in range(end - start):
            column = part[:, k]
            q = scale * (torch.clamp(torch.round(column / scale) + zero, 0, 15) - zero)
            out[:, start + k] = q
            error = (column - q) / corner[k, k]
            part[:, k:] -= error[:, None] @ corner[k, k:][None]
            errors[:, k] = error
        w[:, end:] -= errors @ inverse[start:end, end:]
    return out[:, order.argsort()]


if __name__ == "__main__":
    common.main("gptq_time", bench)
