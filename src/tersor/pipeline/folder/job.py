"""Everything that a run over a folder depends on, checked before a weight is read."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.arguments import computes_float64, usable_device, whole
from tersor.checkpoints.architecture import import_transformers
from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.layouts import LAYOUTS
from tersor.errors import CheckpointError, EngineError, RecipeError, TaskError
from tersor.measure.environment import device_name, versions
from tersor.measure.windows import Windows
from tersor.pipeline.folder.blockwise import COLLECTED, choice_of, needs_data
from tersor.pipeline.folder.cuts.folder import PrunedFolder
from tersor.pipeline.folder.cuts.plan import plan_cut
from tersor.pipeline.folder.metamodel import MetaModel, quiet
from tersor.pipeline.folder.plan import LayoutFit, WeightPlan, check_recipe, plan_weights, quantize_step
from tersor.pipeline.folder.preflight import Preflight, preflight, with_pruning
from tersor.pipeline.folder.solving.sparse import check_sparse, layouts_of
from tersor.pipeline.folder.text import Data, positions, windows
from tersor.recipe import Prune, Quantize, Recipe, Train, resolve
from tersor.solvers.structured import SCORES
from tersor.solvers.structured.plain import BatchNormScale
from tersor.tables import made
from tersor.training.language.blocks import BlockTraining


@dataclass(frozen=True)
class Job:
    """Everything that a run depends on, checked and ready.

    Args:
        calibration, evaluation: windows of tokens; None if not needed.
        preflight: predictions before anything runs.
        token_mask: bool [windows, length], True for real tokens of the calibration; None: all are real.
        sparse: the layout of pruned weights that stay float; None: they are stored with their zeros.
        training: how each block is trained once it is solved; None: it is not.
        unpruned: the model of the folder that was given, if the recipe prunes: ``source``, ``metamodel`` and ``plans``
            are those of what is left, in shapes alone until it is done.
    """

    source: HfFolder
    metamodel: MetaModel
    recipe: Recipe
    layout: str
    plans: list[WeightPlan]
    calibration: Windows | None
    evaluation: Windows | None
    preflight: Preflight
    token_mask: Tensor | None = None
    sparse: str | None = None
    training: BlockTraining | None = None
    unpruned: MetaModel | None = None

    @property
    def quantize(self) -> Quantize:
        """The step `quantize`, or one that leaves all in float."""
        return quantize_step(self.recipe)

    @property
    def dense(self) -> MetaModel:
        """The model of the folder that was given."""
        return self.unpruned or self.metamodel

    def on(self, metamodel: MetaModel) -> "Job":
        """The job on the model that pruning left."""
        plans = plan_weights(metamodel, self.recipe, LayoutFit(LAYOUTS[self.layout], metamodel.folder.dtype))
        return replace(self, source=metamodel.folder, metamodel=metamodel, plans=plans)


def prepare_job(
    source: str | Path,
    recipe: Recipe | str | Path,
    data: Data | None,
    *,
    evaluate: Data | None = None,
    layout: str = "compressed-tensors",
    samples: int = 128,
    length: int | None = None,
    build: Callable[[], nn.Module] | None = None,
    device: str | torch.device | None = None,
    needs: bool = True,
) -> Job:
    """Check everything that can be checked before a weight is read; with ``needs``, also that needed data is given."""
    layout, sparse = layouts_of(layout)
    samples = whole("--samples", samples, 1, None, "it is the number of windows of data", TaskError)
    if length is not None:
        length = whole("--length", length, 2, None, "it is the tokens of a window", TaskError)
    recipe, place = resolve(recipe), usable_device(device)
    import_transformers()
    with quiet():
        folder = HfFolder(source)
        parts = [folder.config, *(part for part in folder.config.values() if isinstance(part, dict))]
        if any("quantization_config" in part for part in parts):
            raise CheckpointError(f"{folder.path} is quantized already; give the original")
        metamodel = dense = MetaModel(folder, build, place)
        if prunes := [step for step in recipe.steps if isinstance(step, Prune)]:
            metamodel = _planned_cuts(prunes, recipe, dense, build, needs=needs and data is None)
    plans = plan_weights(metamodel, recipe, LayoutFit(LAYOUTS[layout], folder.dtype))
    check_sparse(sparse, plans)
    if not prunes and not any(t.touched for t in plans):
        inside = [t for t in plans if t.slice.parameter.startswith(f"{metamodel.blocks.path}.")] or plans
        why = inside[0].reason if inside else "it holds no matrix"
        raise RecipeError(f"nothing in {folder.path} can be compressed by {recipe.name}: {why}")
    step, training = quantize_step(recipe), _training(recipe, plans)
    if (step.awq or step.rotate) and not computes_float64(place):
        raise EngineError(f"`awq` and `rotate` compute in float64, which {place} does not have: use the device cpu")
    turned = next((p.name for p in metamodel.slices.values() if not p.whole), None)
    if turned and (step.awq or step.rotate):
        raise RecipeError(f"{turned}: transformers turns or mixes it on loading; leave `awq` and `rotate` out")
    if needs and data is None:
        _check_without_text(recipe, plans, training)
    if unmet := next((t for t in plans if t.touched and choice_of(t).needs - COLLECTED), None):
        raise RecipeError(
            f"{unmet.name}: {choice_of(unmet).name} needs the {', '.join(choice_of(unmet).needs - COLLECTED)} of its "
            f"layer's inputs, and a folder gives {', '.join(COLLECTED)}: choose another solver or range"
        )
    length = length or min(512, positions(folder.config) or 512)
    calibration = windows(data, folder, length, samples, "data (--data)") if data is not None else None
    evaluation = windows(evaluate, folder, length, None, "evaluate (--valid)") if evaluate is not None else None
    found = preflight(metamodel, plans, layout, calibration, evaluation, training, sparse)
    if prunes:
        found = with_pruning(found, dense, metamodel)
    unpruned = dense if prunes else None
    return Job(
        metamodel.folder, metamodel, recipe, layout, plans, calibration, evaluation, found, sparse=sparse,
        training=training, unpruned=unpruned,
    )  # fmt: skip


def _check_without_text(recipe: Recipe, plans: list[WeightPlan], training: BlockTraining | None) -> None:
    """Reject a recipe that asks for calibration text; raises RecipeError."""
    step = quantize_step(recipe)
    if step.awq or step.rotate:
        raise RecipeError(f"`awq` and `rotate` of the recipe {recipe.name} ask for calibration text: give --data TEXT")
    if asking := [t for t in plans if t.touched and needs_data(t)]:
        raise RecipeError(
            f"{asking[0].name}: the solver of the recipe {recipe.name} asks for calibration text: give --data TEXT, or "
            "a recipe without, such as int4-weight"
        )
    if training is not None:
        raise RecipeError(f"`train` of the recipe {recipe.name} asks for calibration text: give --data TEXT")


def _planned_cuts(
    prunes: list[Prune], recipe: Recipe, dense: MetaModel, build: Callable[[], nn.Module] | None, needs: bool
) -> MetaModel:  # fmt: skip
    """The model that pruning will leave, in shapes alone.

    Args:
        needs: refuse steps that read a text, since there is none.

    Raises:
        RecipeError: a step cannot be done to this folder.
    """
    check_recipe(recipe)
    if build is not None:
        raise RecipeError(
            f"the step `prune` of the recipe {recipe.name} writes a smaller config.json, and `build` makes the model "
            "without one: leave it out"
        )
    metamodel = dense
    for step in prunes:
        score = made(SCORES, step.score, "score")
        if "gradients" in score.needs or isinstance(score, BatchNormScale):
            raise RecipeError(
                f"the score {step.score} needs gradients of the whole model, or a BatchNorm, and a folder has one "
                "block in memory at a time: use obs, wanda, apoz, geometric-median, magnitude or random"
            )
        by_layers = step.amount[0] == "layers"
        if by_layers and step.score != Prune().score:
            raise RecipeError("layers are rated by how much they turn the hidden state: leave `score` out")
        if needs and (by_layers or score.needs or step.repair is not None):
            raise RecipeError(
                f"`prune` of the recipe {recipe.name} asks for calibration text: give --data TEXT, or `score: "
                "magnitude` and `repair: none` for other targets than layers"
            )
        metamodel = MetaModel(PrunedFolder(metamodel, plan_cut(step, metamodel)), None, dense.device)
    return metamodel


def _training(recipe: Recipe, plans: list[WeightPlan]) -> BlockTraining | None:
    """How the blocks are trained; None: the recipe has no step `train`.

    Raises:
        RecipeError: the step stands elsewhere than behind `quantize`, or a weight cannot be trained.
    """
    names = [step.name for step in recipe.steps]
    if "train" not in names:
        return None
    behind = names[names.index("quantize") :] if "quantize" in names else []
    if behind.count("train") != 1 or names.count("train") > 1:
        raise RecipeError(
            f"the steps of the recipe {recipe.name} are {', '.join(names)}; a folder is trained once, behind "
            "`quantize`: leave the other `train` out"
        )
    if sparse := next((t for t in plans if t.sparsity is not None), None):
        raise RecipeError(f"{sparse.name} is pruned, and training fills zeros: leave `sparsity` or `train` out")
    if other := next((t for t in plans if t.spec is not None and t.spec.format.kind != "int"), None):
        raise RecipeError(f"{other.name} is stored in {other.spec}, and scales of integers alone are trained")
    step = next(step for step in recipe.steps if isinstance(step, Train))
    return step.blocks or BlockTraining()


def with_padding(job: Job, token_mask: Tensor) -> Job:
    """The job with padded positions that are ignored; the first rows of the mask are those of its windows.

    Raises:
        TaskError: it does not fit the windows.
    """
    if not isinstance(token_mask, Tensor):
        raise TaskError(f"`token_mask` is a {type(token_mask).__name__}: give a bool tensor [windows, length]")
    pruned = job.unpruned is not None
    experts = next((t.name for t in job.plans if (pruned or t.touched) and t.slice.index is not None), None)
    if job.quantize.awq or experts:
        what = "`awq`" if job.quantize.awq else f"the experts ({experts})"
        raise TaskError(f"padding would count for {what}; give windows without padding, and no `token_mask`")
    windows = job.calibration
    token_mask = token_mask if windows is None else token_mask[: len(windows)]
    if windows is None or token_mask.shape != windows.ids.shape:
        wanted = None if windows is None else list(windows.ids.shape)
        raise TaskError(f"`token_mask` has the shape {list(token_mask.shape)}, the windows of `data` {wanted}")
    return replace(job, token_mask=token_mask.bool().cpu())


def fingerprint(job: Job) -> dict[str, Any]:
    """Everything that the written bytes depend on."""
    files = sorted({e.file for e in job.source.entries.values()})
    stats = [(f, (s := (job.source.path / f).stat()).st_size, s.st_mtime_ns) for f in files]
    ids = {
        name: hashlib.sha256(w.ids.numpy().tobytes()).hexdigest() if w else None
        for name, w in (("calibration", job.calibration), ("evaluation", job.evaluation))
    }
    if job.token_mask is not None:
        ids["token_mask"] = hashlib.sha256(job.token_mask.numpy().tobytes()).hexdigest()
    return {
        "source": [str(job.source.path.resolve()), *map(list, stats)],
        "recipe": job.recipe.to_yaml(),
        "layout": job.layout,
        "config": hashlib.sha256((job.source.path / "config.json").read_bytes()).hexdigest(),
        "versions": versions(("tersor", "transformers", "safetensors")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": device_name(job.metamodel.device),
        **ids,
    }
