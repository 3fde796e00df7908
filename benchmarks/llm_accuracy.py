"""What bits cost stories260k: loss over FP32 of GPTQ as a share of that of rounding to nearest over the full range.

128 windows of 512 tokens of the training text calibrate, the first 200 of the validation text judge.
"""

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

import tersor
from benchmarks.common import Claim, Outcome, main, say
from benchmarks.tasks.llm import stories
from tersor.measure.windows import tokens_of, windows_of
from tersor.pipeline.folder.text import tokenizer_of
from tersor.recipe import Quantization, Recipe

TEXTS = Path(__file__).parents[1] / "../shared/data/stories260k"
FLOAT = Quantization(format="fp32")
# format, granularity, symmetric, the share to reach. 172 inputs are divided by none of the usual groups: that layer
# takes a scale for each channel then.
SETTINGS: list[tuple[str, str, bool, float | None]] = [
    ("int4", "channel", False, 0.5),
    ("int3", "channel", True, 0.35),
    ("int4", "channel", True, None),
    ("int4", "group:32", False, None),
    ("int4", "group:32", True, None),
    ("int4", "group:64", True, None),
    ("int3", "channel", False, None),
    ("int3", "group:32", True, None),
    ("int3", "group:64", True, None),
    ("int2", "channel", False, None),
    ("int2", "channel", True, None),
    ("int2", "group:32", False, None),
    ("int2", "group:64", False, None),
]


def bench(quick: bool) -> Outcome:
    """GPTQ against rounding at 4, 3 and 2 bits; AWQ beside it."""
    details: dict[str, Any] = {}
    claims, ordered = [], []
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as name:
        folder = Path(name)
        source = stories(folder / "stories")
        calibration = windows(source, "tinystories_train.txt", 4 if quick else 128)
        held = windows(source, "tinystories_valid.txt", 4 if quick else 200)
        for bits, granularity, symmetric, reach in SETTINGS[: 2 if quick else None]:
            what = f"{bits} {granularity} {'symmetric' if symmetric else 'asymmetric'}"
            say(what)
            found = {}
            for method in ("rtn", "gptq", "awq"):
                recipe = recipe_of(method, bits, granularity, symmetric)
                out = folder / f"{what} {method}".replace(" ", "-").replace(":", "-")
                report = tersor.compress_folder(source, out, recipe, calibration, evaluate=held, progress=False)
                assert report.original is not None
                assert report.compressed is not None
                found[method], before = report.compressed.nats, report.original.nats
            details[what] = found | {"float": before}
            share = (found["gptq"] - before) / (found["rtn"] - before)
            peer = ", ".join(f"{m} {n:.4f}" for m, n in found.items()) + f", FP32 {before:.4f}"
            claims.append(Claim("llm_share", f"stories260k, {what}", share, reach, unit="of RTN's", peer=peer))
            ordered.append(found["gptq"] < found["rtn"])
    claims.append(
        Claim("llm_order", "stories260k, settings where GPTQ loses less than RTN", sum(ordered), len(ordered), False)
    )
    return Outcome(claims, details)


def recipe_of(method: str, bits: str, granularity: str, symmetric: bool) -> Recipe:
    """The recipe of a setting."""
    kinds: dict[str, Any] = {"format": bits, "symmetric": symmetric}
    kinds |= {
        "rtn": {"range": "minmax"}, "gptq": {"range": "mse", "solver": "gptq"}, "awq": {"range": "awq"},
    }[method]  # fmt: skip
    weights = Quantization(granularity=granularity, **kinds)
    rule = tersor.Rule(layer="*.down_proj", weights=Quantization(granularity="channel", **kinds))
    return Recipe(name=method, weights=weights, activations=FLOAT, awq=method == "awq", rules=(rule,))


def windows(source: Path, name: str, count: int) -> Tensor:
    """The first windows of a shared text."""
    text = (TEXTS / name).read_text(encoding="utf8").strip()
    return windows_of(tokens_of(tokenizer_of(source), text), 512, limit=count).ids


if __name__ == "__main__":
    main("llm_accuracy", bench)
