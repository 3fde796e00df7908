"""LSTM and GRU of two layers, 512 wide, 64 steps: ours in PyTorch, torch.ao, PyTorch's own, interleaved."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import tersor
from benchmarks import common
from benchmarks.common import Claim, Outcome, milliseconds, over, timed

WIDTH, STEPS = 512, 64


def bench(quick: bool) -> Outcome:
    """Batch 1 and 8, 2 threads."""
    claims: list[Claim] = []
    details: dict[str, Any] = {}
    for kind in (nn.LSTM, nn.GRU):
        for batch in (1, 8):
            title = f"{kind.__name__}, batch {batch}"
            found = timed(calls(kind, batch), quick)
            value, spread = over(found, "ours", "torch.ao dynamic")
            beside = ", ".join(f"{k} {v.median:.2f} ms" for k, v in found.items())
            claims.append(Claim("recurrent", title, value, 1.05, spread=spread, peer=beside))
            details[title] = milliseconds(found)
    return Outcome(claims, details)


def calls(kind: type[nn.RNNBase], batch: int) -> dict[str, Callable[[], Any]]:
    """What is timed, on one and the same input."""
    torch.manual_seed(0)
    network, x = kind(WIDTH, WIDTH, num_layers=2).eval(), torch.randn(STEPS, batch, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # It exchanges children only.
        peer = torch.ao.quantization.quantize_dynamic(nn.ModuleList([network]), {kind}, dtype=torch.qint8)[0]
    modules = {"ours": tersor.quantize_dynamic(network), "torch.ao dynamic": peer, "FP32": network}
    return {name: _call(module, x) for name, module in modules.items()}


def _call(module: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return module(x)

    return call


if __name__ == "__main__":
    common.main("speed_recurrent", bench)
