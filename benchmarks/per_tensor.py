"""MobileNetV2 with one scale for each weight: the collapse, and what the two cures bring back."""

from dataclasses import asdict

from pictures import symmetric

from benchmarks import common
from benchmarks.accuracy import in_float, ours, simulation_claims
from benchmarks.accuracy_imagenet import photographs
from benchmarks.common import Claim, Outcome
from tersor.recipe import Quantization, Recipe

WEIGHTS = Quantization(granularity="tensor", range="mse")
RECIPES = {
    "neither": Recipe(name="plain", weights=WEIGHTS, equalize="off", bias_correction=False),
    "bias correction": Recipe(name="bias", weights=WEIGHTS, equalize="off"),
    "equalization": Recipe(name="equalized", weights=WEIGHTS, equalize="on", bias_correction=False),
    "both": Recipe(name="both", weights=WEIGHTS, equalize="on"),
}


def bench(quick: bool) -> Outcome:
    """Top-1 lost on 744 photographs, with and without the two cures, in both engines."""
    task = photographs("mobilenetv2", symmetric, 0, quick)
    claims, details = [], {}
    for engine in ("openvino",) if quick else ("openvino", "onnxruntime"):
        before = in_float(task, engine)
        for name, recipe in RECIPES.items():
            cured = name == "both"
            found = ours(task, engine, before, recipe, simulate=cured)
            what = f"MobileNetV2 per tensor, {engine}, {name}"
            claims.append(
                Claim(
                    "per_tensor",
                    what,
                    found.drop,
                    2.0 if cured else None,
                    unit="points",
                    spread=found.interval,
                )
            )
            claims += simulation_claims(what, found)
            details[what] = asdict(found)
    return Outcome(claims, details)


if __name__ == "__main__":
    common.main("per_tensor", bench)
