"""How many of sixteen architectures are taken without a word of configuration."""

from collections.abc import Callable
from typing import Any

import tiny
from torch import nn
from typer.testing import CliRunner

import tersor
from benchmarks import common
from benchmarks.common import Claim, Outcome, say
from tersor.cli import app
from tersor.engines import engine as find_engine
from tersor.errors import TersorError
from tersor.network.quantized import Quantized
from tersor.pipeline.graph.prepare import prepare
from tersor.recipe import resolve

# Written out by hand, as GPT-2's and Mixtral's experts are: the plan leaves them in float.
PRODUCTS = {"addmm", "mm", "bmm", "grouped_mm", "grouped_mm_fallback"}


def bench(quick: bool) -> Outcome:
    """`tersor inspect` shows the plan of each, `int8-dynamic` computes; tiny networks of random weights."""
    details: dict[str, Any] = {}
    names = list(tiny.NETS)[: 2 if quick else None]
    ways: dict[str, Callable[[str], str]] = {"tersor inspect": inspected, "int8-dynamic": quantized}
    claims = []
    for way, take in ways.items():
        found = details[way] = {}
        for name in names:
            say(f"{name}: {way}")
            try:
                found[name] = take(name)
            except TersorError as error:
                found[name] = f"refused: {error}"
        refused = [name for name in names if found[name].startswith("refused")]
        beside = f"refused: {', '.join(refused)}" if refused else ""
        what = f"{way}, of {len(names)}"
        claims.append(Claim("architectures", what, len(names) - len(refused), len(names), False, peer=beside))
    return Outcome(claims, details)


def inspected(name: str) -> str:
    """Through the command line; then how much of it the plan computes in int8."""
    words = ["inspect", f"{tiny.__file__}:{name}"]
    CliRunner().invoke(app, words, catch_exceptions=False, standalone_mode=False)
    plan = prepare(tiny.task(name), resolve("int8-static"), find_engine("openvino").policy()).plan
    counted = [layer for layer in plan.layers if layer.weight_format is not None or layer.op in PRODUCTS]
    return _counted([layer.planned == "int8" for layer in counted])


def quantized(name: str) -> str:
    """In PyTorch, called once; then how many of the modules with weights compute in int8."""
    model, inputs = tiny.build(name)
    small: nn.Module = tersor.quantize_dynamic(model, progress=False)
    small(**inputs)
    assert any(isinstance(m, Quantized) for m in small.modules())
    return _counted([e.weights is not None for e in tersor.dynamic_plan(model)])


def _counted(int8: list[bool]) -> str:
    return f"{sum(int8)} of {len(int8)} layers with weights"


if __name__ == "__main__":
    common.main("architectures", bench)
