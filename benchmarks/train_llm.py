"""What training gives stories260k at 2 and 3 bits: loss over FP32 as a share of GPTQ's.

256 windows of 512 tokens of the training text calibrate GPTQ and train, the first 200 of the validation text judge.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

import tersor
from benchmarks.common import Claim, Outcome, main, say
from benchmarks.llm_accuracy import recipe_of, windows
from benchmarks.tasks.llm import stories
from tersor.recipe import Recipe, Train
from tersor.training.language.blocks import BlockTraining

# bits, what is trained end to end, the share to reach.
SETTINGS: list[tuple[str, Literal["scales", "weights"], float | None]] = [
    ("int2", "scales", 0.5), ("int2", "weights", None), ("int3", "scales", None),
]  # fmt: skip


def bench(quick: bool) -> Outcome:
    """Block by block, then scales end to end, against GPTQ alone."""
    details: dict[str, Any] = {}
    claims = []
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as place:
        folder = Path(place)
        source = stories(folder / "stories")
        calibration = windows(source, "tinystories_train.txt", 8 if quick else 256)
        held = windows(source, "tinystories_valid.txt", 4 if quick else 200)
        for bits, what, reach in SETTINGS[: 1 if quick else None]:
            found: dict[str, float] = {}
            gptq = recipe_of("gptq", bits, "group:32", False)
            options = BlockTraining(end_to_end=what)
            trained = Recipe(name=f"{bits}-train", steps=(*gptq.steps, Train(blocks=options)))
            for recipe in (gptq, trained):
                say(f"{bits} {recipe.name} {what}")
                out = folder / f"{bits}-{recipe.name}-{what}"
                report = tersor.compress_folder(
                    source, out, recipe, calibration, samples=len(calibration), evaluate=held, progress=False
                ).report
                found[recipe.name] = report.compressed.nats
                found["float"] = report.original.nats
                details[f"{bits} {recipe.name} {what}"] = {
                    "nats": report.compressed.nats,
                    "divergence": report.divergence.nats,
                    "seconds": report.timings_s,
                    "training": [line.model_dump() for line in report.training],
                }
            share = (found[trained.name] - found["float"]) / (found["gptq"] - found["float"])
            peer = ", ".join(f"{m} {n:.4f}" for m, n in found.items())
            name = f"stories260k, {bits} group:32, {what} end to end"
            claims.append(Claim("llm_trained", name, share, reach, unit="of GPTQ's", peer=peer))
    return Outcome(claims, details)


if __name__ == "__main__":
    main("train_llm", bench)
