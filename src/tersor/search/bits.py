"""Bits for each weight of a language model: what each loses in each format, and the best choice for a mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.arguments import whole
from tersor.checkpoints.destination import check_folder
from tersor.errors import RecipeError, TaskError
from tersor.measure.formatting import size_text
from tersor.network.blocks.calls import plain
from tersor.network.blocks.chain import get_tensor
from tersor.numerics import FORMATS, QuantSpec, quantize_tensor
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.folder.blockwise import oriented
from tersor.pipeline.folder.compress import compress_folder
from tersor.pipeline.folder.job import Job, prepare_job
from tersor.pipeline.folder.metamodel import quiet
from tersor.pipeline.folder.plan import WeightPlan
from tersor.pipeline.folder.text import Data
from tersor.pipeline.folder.trained.whole import free_bytes
from tersor.pipeline.progress import Stages
from tersor.recipe import Quantization, Recipe, Rule, resolve
from tersor.solvers.structured.allocation import Option, allocate
from tersor.turns import in_turn
from tersor.words import _

CHOICES = ("int2", "int3", "int4", "int8")


@dataclass(frozen=True)
class WeightCost:
    """What a weight loses.

    Args:
        name: of its layer.
        elements: how many numbers it has.
        losses: for each format the divergence of the model's outputs, in nats per token, with this weight alone
            rounded.
    """

    name: str
    elements: int
    losses: dict[str, float]


@in_turn
def bit_costs(
    source: str | Path, recipe: Recipe | str | Path, data: Data | None, *, formats: Sequence[str] = CHOICES,
    samples: int = 8, length: int | None = None, progress: bool = True, **options: Any,
) -> list[WeightCost]:
    """Round one weight after another to nearest, in each format, and measure how far the model's outputs move.

    The whole model is in memory. Solvers lose less than rounding, but by about the same factor everywhere.

    Args:
        source, recipe, data, length: as in ``compress_folder``; the recipe says which weights, and in what groups.
        formats: keys of FORMATS, of integers.
        samples: windows of the data.

    Raises:
        RecipeError: a format that is no integer.
        TaskError: no data.
        TersorError: as ``compress_folder`` before it begins.
    """
    if odd := [name for name in formats if name not in FORMATS or not name.startswith("int")]:
        raise RecipeError(f"the format {odd[0]!r} is none of integers: choose among {', '.join(CHOICES)}")
    if data is None:
        raise TaskError("bits are chosen by what each weight loses on a text: give data (--data)")
    job = prepare_job(source, recipe, data, samples=whole("samples", samples, 1, None, "8 rate weights", TaskError),
                      length=length, needs=False, **options)  # fmt: skip
    plans = [plan for plan in job.plans if plan.spec is not None]
    with Stages(progress) as stages, quiet(), torch.no_grad():
        model = _loaded(job)
        with stages.stage("measure", _("what each weight loses"), len(plans) * len(formats)) as bar:
            assert job.calibration is not None
            judge = _Judge(model, job.calibration.ids)
            found = list[WeightCost]()
            for plan in plans:
                assert plan.spec is not None
                weight = plan.slice.part(get_tensor(model, plan.slice.parameter).data)
                before, losses = weight.clone(), dict[str, float]()
                for name in formats:
                    weight.copy_(oriented(plan, _rounded(plan, before, name)))
                    losses[name] = judge()
                    bar.advance()
                weight.copy_(before)
                found.append(WeightCost(plan.name, before.numel(), losses))
    return found


def mixed_bits(costs: Sequence[WeightCost], recipe: Recipe | str | Path, bits: float) -> Recipe:
    """The recipe with a rule for every weight, so that their mean has so many bits and least is lost in sum.

    Raises:
        RecipeError: fewer bits than the smallest format has.

    >>> costs = [WeightCost("a", 100, {"int2": 0.5, "int4": 0.01}), WeightCost("b", 100, {"int2": 0.1, "int4": 0.01})]
    >>> [str(rule.weights.format) for rule in mixed_bits(costs, "int4-gptq", 3.0).quantize.rules[-2:]]
    ['int4', 'int2']
    """
    recipe = resolve(recipe)
    formats = list(costs[0].losses) if costs else []
    total = sum(cost.elements for cost in costs)
    units: list[list[Option]] = [
        [{"loss": c.losses[f], "bits": FORMATS[f].bits * c.elements / total} for f in formats] for c in costs
    ]
    chosen = allocate(units, "loss", {"bits": bits})
    if chosen is None:
        least = min((FORMATS[f].bits for f in formats), default=0)
        raise RecipeError(
            f"{bits:g} bits for each weight are fewer than the smallest format has: ask for {least} or more"
        )
    rules = tuple(
        Rule(layer=escape(cost.name), weights=Quantization(format=formats[k]))
        for cost, k in zip(costs, chosen, strict=True)
    )
    return recipe.model_copy(update={"name": f"{recipe.name}-{bits:g}bits", "rules": (*recipe.quantize.rules, *rules)})


def optimize_folder(
    source: str | Path, out: str | Path, bits: float, recipe: Recipe | str | Path = "int4-gptq",
    data: Data | None = None, *, formats: Sequence[str] = CHOICES, rated: int = 8, length: int | None = None,
    progress: bool = True, **options: Any,
) -> Compressed:
    """Compress a language model so that its weights have so many bits in the mean, where they lose least.

    Args:
        source, out, data, length, options: as in ``compress_folder``.
        recipe: of the weights; its format is replaced, its solver and groups stay.
        bits: the mean over all weights that the recipe quantizes, without scales.
        formats: among which each weight's is chosen.
        rated: windows of ``data`` on which weights are rated.

    Raises:
        TersorError: as ``bit_costs``, ``mixed_bits`` and ``compress_folder``.
    """
    out = check_folder(out, bool(options.get("force", False)), (Path(source),))
    costs = bit_costs(
        source, recipe, data, formats=formats, samples=rated, length=length, progress=progress,
        layout=options.get("layout", "compressed-tensors"),
    )  # fmt: skip
    mixed = mixed_bits(costs, recipe, bits)
    return compress_folder(source, out, mixed, data, length=length, progress=progress, **options)


def _loaded(job: Job) -> nn.Module:
    metamodel = job.metamodel
    needed, free = (4 * sum(p.numel() for p in metamodel.model.parameters()), free_bytes(metamodel.device))
    if needed > free:
        raise TaskError(
            f"bits are chosen with the whole model in memory, which takes {size_text(needed)}, and {size_text(free)} "
            "are free: choose on a larger machine, and give the recipe that it wrote to `compress`"
        )
    metamodel.load([*metamodel.outside(), *metamodel.parameters(metamodel.blocks.path)], torch.float32)
    return metamodel.model


def _rounded(plan: WeightPlan, weight: Tensor, name: str) -> Tensor:
    """The weight [out, in] rounded to nearest, in the plan's groups."""
    assert plan.spec is not None
    spec: QuantSpec = plan.spec.with_(format=name)
    return quantize_tensor(oriented(plan, weight).float(), spec).dequantize()


class _Judge:
    """How far the model's outputs are from those that it gave at first, in nats per token."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        self.wanted = [self._outputs(row) for row in ids.split(1)]

    def __call__(self) -> float:
        pairs = zip(self.wanted, self.ids.split(1), strict=True)
        found = [float(nn.functional.kl_div(self._outputs(row), want, reduction="sum", log_target=True))
                 for want, row in pairs]  # fmt: skip
        return max(0.0, sum(found)) / self.ids.numel()

    def _outputs(self, row: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        logits = self.model(**plain(self.model, {"input_ids": row.to(device)})).logits
        return logits.float().log_softmax(-1).flatten(0, 1)


