"""The step `train`: a network learns from its FP32 self, another teacher, or the task's own loss."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tersor.errors import TersorError
from tersor.recipe.quantization import Strict
from tersor.recipe.steps.base import Phase, Step, Subject
from tersor.recipe.steps.sparsify import Sparsify, sparsify
from tersor.tables import Named, checked, made, name_of, parsed
from tersor.task import Task
from tersor.training.language.blocks import BlockTraining
from tersor.training.losses import LOSSES
from tersor.training.optimizers import OPTIMIZERS
from tersor.training.proximal.admm import Admm
from tersor.training.proximal.pulls import PULLS
from tersor.training.quantizers import QUANTIZERS
from tersor.training.schedules import SCHEDULES
from tersor.training.stabilizers import STABILIZERS


def _named(table: Mapping[str, Any], what: str, *others: str) -> BeforeValidator:
    """A validator of the name of an entry, alone or with its options."""

    def check(value: Any) -> Named:
        try:
            named = parsed(value, what)
            return named if named in others else checked(table, named, what)
        except TersorError as error:
            raise ValueError(str(error)) from error

    return BeforeValidator(check)


class Quantizers(Strict):
    """The training quantizers of weights and of activations: entries of ``tersor.training.quantizers.QUANTIZERS``.

    ``auto`` takes ``lsq``, and ``sign`` for binary values.
    """

    weights: Annotated[Named, _named(QUANTIZERS, "quantizer", "auto")] = "auto"
    activations: Annotated[Named, _named(QUANTIZERS, "quantizer", "auto")] = "auto"


def _losses(value: Any) -> Any:
    """One loss or several; `none` and `off` are none."""
    if value in ("none", "off", None, False):
        return ()
    return (value,) if isinstance(value, (str, Mapping)) else value


def _both(value: Any) -> Any:
    """One name for weights and activations."""
    return {"weights": value, "activations": value} if isinstance(value, str) else value


class Train(Step):
    """How a network is trained; before ``quantize`` in float, after it with its quantizers.

    Args:
        epochs: passes over ``Task.train()``; at most ``steps`` steps of the optimizer, if that is given.
        quantizers: how scales and codes are trained; one name stands for weights and activations.
        distill: losses between the network and its teacher, ``Task.teacher`` or the FP32 network itself; ``none``
            trains by ``Task.loss`` alone.
        optimizer: an entry of ``tersor.training.optimizers.OPTIMIZERS``; ``Task.optimizer`` replaces it.
        rate: the learning rate, which rises linearly over ``warmup``, a share of all steps, and falls by a cosine.
        scale_rate: that of the quantizers' scales and offsets; None: the same.
        weight_decay: of weights, not of biases, norms and scales.
        clip: the largest norm of the gradients of all weights and biases together.
        freeze_batchnorm: the share of all steps after which BatchNorm keeps its running statistics.
        re_estimate: measure BatchNorm's statistics again on training batches at the end, and keep them if better.
        dropout: whether dropout is active.
        proximal: ``admm`` (with its options, such as the set) pulls weights towards a quantized set instead of rounding
            them in every step; ``l1`` makes weights zero, ``group-lasso`` outputs or channels, ``slimming`` scales of
            BatchNorms; None: none of them.
        strength: of all but ``admm``.
        sparsity: which weights become zero on the way, and when: a share such as 0.9, a pattern such as ``2:4``, or the
            options of ``Sparsify``; None: none.
        schedule: an entry of ``tersor.training.schedules.SCHEDULES``: what is quantized, when.
        oscillation: an entry of ``tersor.training.stabilizers.STABILIZERS``: what stops weights that oscillate.
        average: the decay of an exponential moving average of weights and log-scales, which replaces them at the end.
        patience: stop after so many epochs without progress on held-out data, of those that began behind the end of
            the schedule, and return the best epoch.
        blocks: for folders in the Hugging Face layout, the only option: each block learns its float output as soon as
            its weights are solved, and then all scales learn the float model's predictions.
        precision: ``bf16`` computes in it where autocast does.

    Raises:
        ValueError: options that do not exist, with what does.

    >>> Train(distill="logits", quantizers="lsq").distill
    ('logits',)
    """

    name: ClassVar[str] = "train"
    phase: ClassVar[Phase] = "any"

    epochs: int = Field(default=1, ge=0)
    steps: int | None = Field(default=None, ge=1)
    quantizers: Annotated[Quantizers, BeforeValidator(_both)] = Quantizers()
    distill: Annotated[tuple[Annotated[Named, _named(LOSSES, "loss")], ...], BeforeValidator(_losses)] = ("auto",)
    optimizer: Annotated[Named, _named(OPTIMIZERS, "optimizer")] = "adamw"
    rate: float = Field(default=1e-3, gt=0)
    scale_rate: float | None = Field(default=None, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    clip: float | None = Field(default=None, gt=0)
    freeze_batchnorm: float = Field(default=1.0, ge=0, le=1)
    re_estimate: bool = True
    dropout: bool = False
    proximal: Annotated[Named, _named(PULLS, "proximal")] | None = None
    strength: float = Field(default=1e-4, ge=0)
    sparsity: Annotated[Sparsify | None, BeforeValidator(sparsify)] = None
    schedule: Annotated[Named, _named(SCHEDULES, "schedule")] = "all"
    oscillation: Annotated[Named, _named(STABILIZERS, "stabilizer")] = "none"
    average: float | None = Field(default=None, gt=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    blocks: BlockTraining | None = None

    @property
    def weight_quantizer(self) -> Named:
        """The training quantizer of weights; ADMM has its own, which projects on its set at the end."""
        asked = made(PULLS, self.proximal, "proximal") if self.proximal is not None else None
        if isinstance(asked, Admm) and self.quantizers.weights == "auto":
            return {"projected": {"set": asked.set, "others": "lsq"}}
        return self.quantizers.weights

    @field_validator("distill", mode="after")
    @classmethod
    def _distinct(cls, value: tuple[Named, ...]) -> tuple[Named, ...]:
        names = [n if isinstance(n, str) else next(iter(n)) for n in value]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"the loss {twice} is named twice")
        return value

    @model_validator(mode="after")
    def _rewinds_alone(self) -> Self:
        others = {"proximal: admm": name_of(self.proximal or "") == "admm", "oscillation": self.oscillation != "none"}
        rewinds = self.sparsity is not None and self.sparsity.rewind is not False
        if held := next((key for key, asked in others.items() if asked and rewinds), None):
            raise ValueError(f"`sparsity: {{rewind: …}}` takes weights back, but `{held}` does not forget them")
        return self

    def __call__(self, subject: Subject, task: Task | None, stages: Any) -> Any:
        """The subject, trained by its host."""
        return subject.host.train(self, subject, task, stages)
