"""ResNet-20 pruned in one shot to 50 % and 70 %, without retraining: ours, and magnitude by one threshold beside it.

Calibrated on training pictures, judged on all 10,000 test pictures; BatchNorm stays as it was trained. What was
published starts from 91.4 (CHITA's comparison, arXiv 2302.14623).
"""

import copy
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from pictures import cifar10, top1, usual
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Claim, Outcome, say
from tersor.pipeline.modules.eager import prunable
from tersor.pipeline.modules.loops import PrunedModel, prune_iteratively

PUBLISHED = {"50%": "magnitude 88.4, WoodFisher 90.2, CHITA 90.6", "70%": "magnitude 78.8, WoodFisher 81.1, CHITA 84.1"}
REACH = {"50%": 90.2, "70%": 82.0}


def bench(quick: bool) -> Outcome:
    """Top-1 of ExactOBS over layers that share a budget; the Fisher matrix's OBS and magnitude beside it."""
    model = common.task("resnet20").model
    pictures, labels = (t[: 64 if quick else 512] for t in cifar10("train0"))
    batches = list(zip(usual(pictures.float()).split(64), labels.split(64), strict=True))
    inputs = [(x,) for x, _ in batches]
    methods: dict[str, Callable[[str], PrunedModel]] = {
        "ExactOBS": lambda asked: prune_iteratively(model, inputs, asked, "obs"),
        "OBS by Fisher blocks": lambda asked: prune_iteratively(model, batches, asked, "obs", loss=cross_entropy),
    }
    before = judged(model, quick)
    claims, details = [], {"float": before}
    for asked in ["70%"] if quick else list(REACH):
        plain = judged(by_magnitude(model, float(asked[:-1]) / 100), quick)
        beside = f"here magnitude {plain:.2f}, from {before:.2f}; published, from 91.4: {PUBLISHED[asked]}"
        for name, prune in methods.items():
            say(f"ResNet-20, {asked}: {name}")
            done = prune(asked)
            found = judged(done.model, quick)
            bound = REACH[asked] if name == "ExactOBS" else None
            what = f"ResNet-20, {asked}, {name}, {100 * done.sparsity:.1f} % are zero"
            claims.append(Claim("prune_resnet", what, found, bound, at_most=False, unit="%", peer=beside))
            details[what] = [asdict(record) for record in done.layers]
        details[f"{asked}, magnitude"] = plain
    return Outcome(claims, details)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of the true labels."""
    return F.cross_entropy(model(batch[0]), batch[1])


def by_magnitude(model: nn.Module, share: float) -> nn.Module:
    """The smallest weights of all layers together go."""
    done = copy.deepcopy(model)
    weights = [layer.parameter for layer in prunable(done)[0]]
    sizes = torch.cat([w.detach().abs().flatten() for w in weights])
    threshold = sizes.kthvalue(round(share * len(sizes))).values
    with torch.no_grad():
        for w in weights:
            w.mul_(w.abs() > threshold)
    return done


def judged(model: nn.Module, quick: bool) -> float:
    """Top-1 in percent."""
    pixels, labels = (t[: 200 if quick else None] for t in cifar10("test"))
    with torch.no_grad():
        return 100 * float(top1(model, pixels, labels, usual).mean())


if __name__ == "__main__":
    common.main("prune_resnet", bench)
