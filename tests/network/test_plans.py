"""Plans of a few networks for every engine, as they are: a change of a policy or of the planner shows here.

``PYTHONPATH=src:tests python tests/network/test_plans.py`` writes them anew; read the difference before you keep it.
"""

import json
from pathlib import Path

import pytest
import torch
from zoo import NETWORKS

from tersor.engines import ENGINES
from tersor.errors import TersorError
from tersor.network.capture import capture
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm
from tersor.network.rewrites.fold_constants import FoldConstants
from tersor.network.sites import plan
from tersor.recipe import PRESETS

SAVED = Path(__file__).parents[1] / "data" / "plans.json"
CHOSEN = ("efficientnet", "shufflenet", "attention", "three_sum", "slices")
RECIPES = ("int8-static", "int8-dynamic", "int4-weight")


def plans(name: str) -> dict[str, list[str]]:
    """The plans of a network, by engine and recipe: what is quantized how, and what each layer computes in."""
    torch.manual_seed(0)
    model, shape = NETWORKS[name]()
    network = FoldBatchNorm()(FoldConstants()(capture(model.eval(), (torch.zeros(1, *shape),))))
    found = {}
    for engine in ENGINES.values():
        policy = engine.policy("x86-vnni" if engine.targets else None)
        for recipe in RECIPES:
            try:
                made = plan(network, PRESETS[recipe]().quantize, policy)
            except TersorError as error:
                found[f"{engine.name} {recipe}"] = [type(error).__name__]
                continue
            lines = [f"{s.kind} {s.node}: {s.spec}, {s.spec.high}, {s.group}, {s.fixed or s.range}" for s in made.sites]
            lines += [f"{layer.node}: {layer.planned}, {layer.weight_format}" for layer in made.layers]
            found[f"{engine.name} {recipe}"] = lines
    return found


@pytest.mark.parametrize("name", CHOSEN)
def test_plans_are_what_they_were(name):
    assert plans(name) == json.loads(SAVED.read_text(encoding="utf8"))[name]


if __name__ == "__main__":
    SAVED.write_text(json.dumps({name: plans(name) for name in CHOSEN}, indent=0) + "\n", encoding="utf8")
