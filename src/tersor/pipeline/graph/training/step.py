"""The step `train` for graphs: the student, what it learns, and the choice between before and after."""

import copy
import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.network.corrections.int32_bias import fit_biases
from tersor.network.network import Network
from tersor.network.trainable.module import Trainable
from tersor.network.trainable.result import network_of
from tersor.network.verify import rewritten, verify
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.graph.training.judging import Judge, Silent, difference_from, judge_of
from tersor.pipeline.graph.training.roles import roles_of, zeros_of_training
from tersor.pipeline.graph.training.student import float_student, quantizers_of, student_of, with_trained
from tersor.pipeline.progress import Stage, Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Train
from tersor.tables import made, name_of
from tersor.task import Task
from tersor.training.history import History
from tersor.training.loop import fit
from tersor.training.losses import LOSSES, Distillation
from tersor.training.objective import Objective
from tersor.training.setting import Setting
from tersor.training.state import digest
from tersor.words import _, said

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where training runs, and where it keeps its state.

    Args:
        folder: for the state of each epoch; None: nowhere.
        device: None: the CPU.
        trackers: of accelerate.
    """

    folder: Path | None = None
    device: torch.device | None = None
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """What happened in one step `train`.

    Args:
        history: its epochs.
        before, after: the loss on held-out data of what it started with, and of the result.
        kept: whether the result was kept.
        held_out: what the held-out loss is, in words.
    """

    history: History
    before: float
    after: float
    kept: bool
    held_out: str
    notes: tuple[str, ...] = field(default=())


def train(step: Train, subject: Subject, task: Task, stages: Stages, place: Place) -> Subject:
    """The subject trained; what was better before stays as it was, and the report says so.

    Raises:
        TaskError: data or loss cannot be used; NumericsError: the loss became NaN or infinite.
    """
    assert task.train is not None  # as check_training found
    assert subject.network is not None
    solved = subject.details if isinstance(subject.details, Solved) else None
    student = _student(step, subject, task, solved)
    # Only a loss of the user's may read parameters of what is judged.
    untrained = student if task.loss is None else copy.deepcopy(student)
    teacher = _teacher(task)
    objective = Objective(task.loss, _distillation(step, student, teacher, task, subject.seed), task.input_names)
    judge, what = judge_of(task, subject.network, teacher, subject.seed)
    setting = Setting(
        seed=subject.seed,
        judge=judge,
        optimizer=task.optimizer,
        folder=None if place.folder is None else place.folder / f"step-{len(subject.history) + 1}",
        about=_about(step, subject, task) if place.folder is not None else {},
        device=place.device,
        trackers=place.trackers,
        roles=roles_of(step, subject, _float(subject, solved), student),
    )
    with stages.stage("train", _("training")) as bar:
        _show(bar, step, setting)
        history = fit(student, objective, task.train, step, setting)
    stray = None if task.loss is None else difference_from(task, subject.network, teacher.to("cpu"), subject.seed)
    return _settled(subject, step, student, untrained, solved, history, judge, what, teacher, stray)


def _about(step: Train, subject: Subject, task: Task) -> dict[str, Any]:
    """What identifies the training: the steps of the recipe so far with all options, engine, network and teacher."""
    options = {
        f"`{key}` of step {number}, {each.name},": value
        for number, each in enumerate((*subject.history, step), 1)
        for key, value in each.model_dump(mode="json").items()
    }
    policy, teacher = subject.host.policy, task.teacher
    return {
        **options, "the engine": f"{policy.engine} {policy.target}".strip(),
        "the network": digest(task.model.state_dict()),
        "the teacher": "the network itself" if teacher is None else digest(teacher.state_dict()),
    }  # fmt: skip


def _show(bar: Stage, step: Train, setting: Setting) -> None:
    """Say epoch, loss and held-out loss while training runs."""
    judge, found = setting.judge, [_("unknown")]
    assert judge is not None

    def judged(model: nn.Module) -> float:
        value = judge(model)
        found[:] = [f"{value:.4g}"]
        return value

    def show(epoch: int, done: int, total: int, loss: float) -> None:
        bar.at(done, total)
        bar.say(_("training, epoch {number} of {count}: loss {loss}, held-out {held_out}", number=epoch + 1,
                  count=step.epochs, loss=f"{loss:.4g}", held_out=found[0]))  # fmt: skip

    setting.judge, setting.report = judged, show


def _student(step: Train, subject: Subject, task: Task, solved: Solved | None) -> Trainable:
    if solved is not None:
        return student_of(task, solved, quantizers_of(step), dropout=step.dropout)
    assert subject.network is not None
    return float_student(task, subject.network, dropout=step.dropout)


def _float(subject: Subject, solved: Solved | None) -> Network:
    """The float network whose parameters are trained."""
    assert subject.network is not None
    return subject.network if solved is None else solved.prepared.original


def _teacher(task: Task) -> nn.Module:
    teacher = copy.deepcopy(task.model if task.teacher is None else task.teacher).eval()
    return teacher.requires_grad_(False)


def _distillation(
    step: Train, student: Trainable, teacher: nn.Module, task: Task, seed: int
) -> Distillation | None:
    if not step.distill:
        return None
    losses = {name_of(named): made(LOSSES, named, "loss") for named in step.distill}
    example = dict(task.example) if task.input_names else tuple(task.example)
    return Distillation(losses, student, teacher, example, seed)


def held_out_losses(task: Task, subject: Subject, *modules: nn.Module) -> tuple[list[float], str]:
    """The loss of each module on held-out data, in eval mode, and what it is in words."""
    assert subject.network is not None
    judge, what = judge_of(task, subject.network, _teacher(task), subject.seed)
    with torch.no_grad():
        return [judge(module.eval()) for module in modules], what


class Deployed(nn.Module):
    """A network as a module, to be judged like one, with the parameters and submodules of its student.

    A loss may read them, as one with a penalty on weights does.
    """

    def __init__(self, network: Network, student: nn.Module) -> None:
        super().__init__()
        self.network = network
        # Under their own names: what ``named_parameters`` and attributes give is the student's.
        self._modules, self._parameters, self._buffers = student._modules, student._parameters, student._buffers

    def train(self, mode: bool = True) -> "Deployed":
        """Its own mode alone: the submodules are the student's."""
        self.training = mode
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's results, in the model's structure."""
        signature = self.network.signature
        if signature is None:
            return self.network(*args, **kwargs)
        out = self.network(*signature.flat(args, kwargs))
        return signature.build((out,) if isinstance(out, Tensor) else out)


def _settled(
    subject: Subject,
    step: Train,
    student: Trainable,
    untrained: Trainable,
    solved: Solved | None,
    history: History,
    judge: Judge,
    what: str,
    teacher: nn.Module,
    stray: Judge | None,
) -> Subject:
    before = subject.network
    assert before is not None
    network = finished(student, solved)
    pair = [Deployed(before, untrained).eval(), Deployed(network, student).eval()]
    losses = [judge(module) for module in pair]
    # One that was never a number is no reason to refuse one that is.
    better = math.isfinite(losses[1]) and not losses[1] > losses[0]
    # What was better with fewer zeros is not what was asked for.
    kept = better or (solved is None and not subject.prunings) or step.sparsity is not None
    notes = student._graphs.notes
    if kept and solved is not None and stray is not None:
        notes = (*notes, *_strayed(*map(stray, (*pair, Silent(teacher)))))
    record = Trained(history, losses[0], losses[1], kept, what, notes)
    subject = replace(subject, history=(*subject.history, step), trainings=(*subject.trainings, record))
    if not kept:
        _log.warning(
            "training by step %d, train, made the network worse and is not kept: %s was %.4g before, %.4g after",
            len(subject.history), what, *losses,
        )
        return subject
    if step.sparsity is not None:
        zeros = zeros_of_training(step, _float(subject, solved), student)
        subject = replace(subject, prunings=(*subject.prunings, zeros))
    if solved is None:
        return replace(subject, network=network)
    return replace(subject, network=network, details=with_trained(solved, student, network))


def _strayed(before: float, after: float, size: float) -> tuple[str, ...]:
    """A warning if training by a loss of the user's left nothing of what the network computed."""
    if not (after > size and after > before):
        return ()
    return (said(
        "training by the task's loss led away from the teacher: the outputs differ by {after} on the calibration data, "
        "by {before} without training, and their mean square is {size}; compare the metrics of both",
        before=f"{before:.3g}", after=f"{after:.3g}", size=f"{size:.3g}",
    ),)  # fmt: skip


def finished(student: Trainable, solved: Solved | None) -> Network:
    """The trained network as it is deployed."""
    network = verify(network_of(student), "training")
    if solved is not None and solved.prepared.policy.integer_biases:
        network = rewritten(network, fit_biases)
    return network
