"""stories260k made smaller without training: excess loss of cut and repair as a share of that of cutting alone.

128 windows of 512 tokens of the training text choose and repair, the first 200 of the validation text judge.
"""

import tempfile
from pathlib import Path
from typing import Any

import tersor
from benchmarks.common import Claim, Outcome, main, say
from benchmarks.llm_accuracy import windows
from benchmarks.tasks.llm import stories
from tersor.recipe import Prune, Recipe

REACH = 0.5
# What goes, and the scores; layers have one of their own.
TARGETS: dict[str, tuple[str, ...]] = {
    "25% mlp": ("obs", "wanda", "magnitude"), "20% layers": ("obs",), "50% heads": ("obs",),
}  # fmt: skip
JUDGED = {("25% mlp", "obs"), ("20% layers", "obs")}


def bench(quick: bool) -> Outcome:
    """Both with the same score; the default one is judged."""
    claims, details = [], dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as place:
        folder = Path(place)
        source = stories(folder / "stories")
        calibration = windows(source, "tinystories_train.txt", 4 if quick else 128)
        held = windows(source, "tinystories_valid.txt", 4 if quick else 200)
        for target, score in list(_settings())[: 1 if quick else None]:
            found: dict[str, float] = {}
            for repair in ("none", "ridge"):
                say(f"{target}, {score}, repair {repair}")
                recipe = Recipe(name="prune", steps=(Prune(target=target, score=score, repair=repair),))
                out = folder / f"{target}-{score}-{repair}".replace("% ", "-")
                report = tersor.compress_folder(
                    source, out, recipe, calibration, samples=len(calibration), evaluate=held, progress=False
                ).report
                found |= {repair: report.compressed.nats, "float": report.original.nats}
                details[f"{target} {score} {repair}"] = {
                    "nats": report.compressed.nats, "seconds": report.timings_s,
                    "pruning": [line.model_dump() for line in report.pruning],
                }  # fmt: skip
            share = (found["ridge"] - found["float"]) / (found["none"] - found["float"])
            peer = f"cut {found['none']:.4f}, repaired {found['ridge']:.4f}, FP32 {found['float']:.4f}"
            named = target if target.endswith("layers") else f"{target} by {score}"
            reach = REACH if (target, score) in JUDGED else None
            what = f"stories260k, {named} gone"
            claims.append(Claim("llm_pruned", what, share, reach, unit="of the cut's", peer=peer))
    return Outcome(claims, details)


def _settings() -> list[tuple[str, str]]:
    return [(target, score) for target, scores in TARGETS.items() for score in scores]


if __name__ == "__main__":
    main("prune_llm", bench)
