"""The training loop: epochs over the data, one optimizer, held-out data; saved behind each epoch."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tersor.errors import TaskError
from tersor.tables import made
from tersor.training import checks
from tersor.training.accelerator import accelerated, share_buffers, share_gradients, shared
from tersor.training.average import average_of, averaged, take_average
from tersor.training.batchnorm import re_estimate
from tersor.training.data import Batches
from tersor.training.history import Epoch, History
from tersor.training.objective import Objective
from tersor.training.optimizers import OPTIMIZERS, cosine, grouped, is_of_quantizer, users_own
from tersor.training.proximal.optimizer import ProximalOptimizer
from tersor.training.proximal.pulls import pulled
from tersor.training.resuming import Course, Saved
from tersor.training.schedules import SCHEDULES
from tersor.training.setting import Setting
from tersor.training.sparse import Sparsifier, sparsified
from tersor.training.stabilizers import STABILIZERS
from tersor.training.state import digest_of
from tersor.training.student import latent_weights
from tersor.user_code import users
from tersor.words import said


def fit(
    student: nn.Module, objective: Objective, train: Callable[[], Iterable[Any]], options: Any, setting: Setting
) -> History:
    """Train a student in place.

    Raises:
        TaskError: data, loss or optimizer cannot be used.
        NumericsError: a loss, a gradient or a weight became NaN or infinite, with step and layer.
        CheckpointError: the folder holds another training, or cannot be written.
    """
    with accelerated(setting.device, setting.trackers, setting.folder) as accelerator:
        return _Loop(student, objective, train, options, setting, accelerator).run()


class _Loop:
    def __init__(
        self, student: nn.Module, objective: Objective, train: Callable[[], Iterable[Any]], options: Any,
        setting: Setting, accelerator: Any,
    ) -> None:
        self.student, self.objective, self.options, self.setting = student, objective, options, setting
        self.accelerator, self.course = accelerator, Course(0, [], None, None, [])
        self.batches = Batches(train, setting.seed, accelerator.process_index, accelerator.num_processes)
        self.total, each = self._steps()
        student.to(accelerator.device)
        objective.to(accelerator.device)
        self.optimizer = self._optimizer()
        self.average = average_of(student, options.average)
        if options.proximal is not None:
            weights = list(latent_weights(student))
            asked = options.proximal, options.strength
            self.optimizer = pulled(self.optimizer, *asked, student, weights, self.total, setting.roles)
        plan = options.sparsity, self.total, each, setting.seed
        self.optimizer, self.sparse = sparsified(self.optimizer, student, setting.roles, *plan)
        self.model, self.prepared = accelerator.prepare(student, self.optimizer)
        self.factor = cosine(self.total, options.warmup, self.sparse.restart)
        self.rates = [g.get("lr") for g in self._groups()]
        self.schedule = made(SCHEDULES, options.schedule, "schedule")
        self.stabilizer = made(STABILIZERS, options.oscillation, "stabilizer")(student)
        made_of = ("student", "average", *(["optimizer"] if isinstance(self.optimizer, ProximalOptimizer) else []))
        self.saved = Saved(self._parts(), setting.folder, self._about(), made_of)

    def run(self) -> History:
        found = self.saved.read()
        if 0 < shared(float(found is not None), self.accelerator) < 1:
            raise TaskError(f"not every process finds the state in {self.setting.folder}: give a folder that all share")
        if found is not None:
            self.course = found
        else:
            self.course.before = self._judged()
            self._save()
        course = self.course
        if not course.finished:
            with self.objective.listening():
                for number in range(len(course.epochs), self.options.epochs):
                    if course.done >= self.total or self._out_of_patience():
                        break
                    self._epoch(number)
                self._finish()
            course.finished, self.saved.best = True, None
            self._save()
        self.student.eval().to("cpu")
        return History(tuple(course.epochs), course.before, tuple(course.notes))

    def _epoch(self, number: int) -> None:
        start, total, count, course = time.perf_counter(), 0.0, 0, self.course
        for batch in self.batches.epoch(number, self.accelerator.device):
            if course.done >= self.total:
                break
            loss = self._step(batch)
            total, count = total + loss, count + 1
            self.setting.report(number, course.done, self.total, loss)
        checks.check_weights(self.student, course.done)
        rate = self._groups()[0].get("lr") or 0.0
        held = self._judged()
        mean, seconds = shared(total / max(1, count), self.accelerator), time.perf_counter() - start
        course.epochs.append(Epoch(number + 1, course.done, mean, held, float(rate), seconds))
        if held is not None and self.sparse.complete and (course.best is None or held < course.best[1]):
            course.best = number + 1, held
            if self.options.patience is not None:
                self.saved.keep()
        self.accelerator.log({"loss": mean, **({} if held is None else {"held out": held})}, number)
        self._save()

    def _step(self, batch: Any) -> float:
        step, progress = self.course.done + 1, self.course.done / self.total
        self._set_progress(progress)
        for group, rate in zip(self._groups(), self.rates, strict=True):
            if rate is not None:
                group["lr"] = rate * self.factor(self.course.done)
        self.model.train()
        with self._precision():
            loss = self.objective(self.model, batch) + self.stabilizer.loss(progress)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise checks.not_finite(self.student, self.objective, batch, step, value)
        self.prepared.zero_grad(set_to_none=True)
        if step == 1:
            checks.check_reached(self.student.parameters(), loss)
        with users("the backward pass of the loss", TaskError, "call loss(model, batch).backward() to debug it"):
            self.accelerator.backward(loss)
        share_gradients(self.objective.distillation, self.accelerator)
        if step == 1:
            self.course.notes += checks.untouched(self.student)
        checks.check_gradients(self.student.named_parameters(), step)
        if self.options.clip is not None:
            # Gradients of scales have another unit, and would drown those of the weights.
            weights = [p for name, p in self.student.named_parameters() if not is_of_quantizer(name)]
            self.accelerator.clip_grad_norm_(weights, self.options.clip)
        self.prepared.step()
        self.stabilizer.step(progress)
        self.course.done = step
        self.sparse.step(step)
        if self.average is not None:
            if step == self.sparse.restart:
                self.average.n_averaged.zero_()
            self.average.update_parameters(self.student)
            self.sparse.clear(self.average.module)
        if step == 1:
            self.saved.check()
        return value

    def _set_progress(self, progress: float) -> None:
        """Tell schedule, quantizers and BatchNorm how far training is."""
        self.schedule(self.student, progress)
        for module in self.student.modules():
            if isinstance(value := getattr(module, "progress", None), torch.Tensor):
                value.fill_(progress)
        if progress >= self.options.freeze_batchnorm and hasattr(self.student, "freeze_batchnorm"):
            self.student.freeze_batchnorm()  # type: ignore[operator]

    def _finish(self) -> None:
        self._choose_epoch()
        self.schedule(self.student, 1.0)
        self.sparse.finish()
        self.course.notes += [note for note in [self.stabilizer.note()] if note]
        take_average(self.student, self.average)
        if isinstance(self.optimizer, ProximalOptimizer) and self.total:
            self._project(self.optimizer)
        self.sparse.clear(self.student)
        if self.options.re_estimate and self.total and self.setting.judge is not None:
            batches = self.batches.epoch(self.options.epochs, self.accelerator.device)
            found = re_estimate(self.student, batches, self.objective.run, self._judge)
            if found is not None:
                kept = said("kept") if found[1] < found[0] else said("not kept")
                self.course.notes.append(said(
                    "BatchNorm measured again at the end, {kept}: held-out loss {before} before, {after} after",
                    kept=kept, before=f"{found[0]:.4g}", after=f"{found[1]:.4g}",
                ))

    def _project(self, optimizer: ProximalOptimizer) -> None:
        """Set the weights of ADMM to their targets."""
        optimizer.project()
        last = [history[-1].primal for history in optimizer.residuals.values() if history]
        if last:
            self.course.notes.append(said(
                "ADMM: weights were {residual} of their size from the set at the last update (mean of {count} weights)",
                residual=f"{sum(last) / len(last):.2g}", count=len(last),
            ))

    def _choose_epoch(self) -> None:
        """With patience, go back to the best epoch."""
        course = self.course
        if self._out_of_patience():
            course.notes.append(said("stopped early behind epoch {number}", number=course.epochs[-1].number))
        if self.options.patience is not None and course.best and course.best[0] < course.epochs[-1].number:
            self.saved.restore()
            course.notes.append(said("epoch {number} was the best on held-out data, and is returned",
                                     number=course.best[0]))

    def _out_of_patience(self) -> bool:
        """Epochs that began before the schedule's end do not count: the network is about to change."""
        patience, best = self.options.patience, self.course.best
        if patience is None or best is None:
            return False
        begun = zip([0, *(e.steps for e in self.course.epochs)], self.course.epochs, strict=False)
        counted = [e for steps, e in begun if e.number > best[0] and steps >= self.schedule.end * self.total]
        return len(counted) >= patience

    def _judge(self) -> float:
        """The held-out loss of the student as it is, the same on every process."""
        assert self.setting.judge is not None
        share_buffers(self.student, self.accelerator)
        self.student.eval()
        with torch.no_grad():
            return shared(self.setting.judge(self.student), self.accelerator)

    def _judged(self) -> float | None:
        """The held-out loss of what would be returned now: everything quantized, with averaged weights."""
        if self.setting.judge is None:
            share_buffers(self.student, self.accelerator)
            return None
        self.schedule(self.student, 1.0)
        with averaged(self.student, self.average):
            return self._judge()

    def _steps(self) -> tuple[int, int]:
        """The number of all steps, and of one epoch."""
        epochs, most = self.options.epochs, self.options.steps
        each = self.batches.steps(most) if epochs else 0
        return min(epochs * each, most or epochs * each), each

    def _optimizer(self) -> Optimizer:
        options = self.options
        named = [(n, p) for n, p in self.student.named_parameters() if p.requires_grad]
        if self.objective.distillation is not None:
            named += [(f"distillation.{n}", p) for n, p in self.objective.distillation.named_parameters()]
        if not named:
            raise TaskError("all parameters are frozen: there is nothing to train; set requires_grad on some")
        if self.setting.optimizer is not None:
            found, left = users_own(self.setting.optimizer, named)
            if left:
                names = checks.listed(left)
                self.course.notes.append(said("the task's optimizer leaves out {names}, which stayed", names=names))
            return found
        groups = grouped(named, options.rate, options.scale_rate, options.weight_decay)
        return made(OPTIMIZERS, options.optimizer, "optimizer")(groups, options.rate)

    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _precision(self) -> Any:
        if self.options.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)

    def _parts(self) -> dict[str, Any]:
        """What a resumed training needs."""
        found = {
            "student": self.student, "optimizer": self.optimizer, "average": self.average,
            "stabilizer": self.stabilizer, "sparse": self.sparse if isinstance(self.sparse, Sparsifier) else None,
            "distillation": self.objective.distillation,
        }  # fmt: skip
        return {name: part for name, part in found.items() if part is not None}

    def _about(self) -> dict[str, Any]:
        return {
            **self.setting.about, "the seed": self.setting.seed, "the number of processes": self.batches.world,
            "the number of steps": self.total, "the first batch of train()": self._data(),
            "the optimizer": type(getattr(self.optimizer, "inner", self.optimizer)).__name__,
        }  # fmt: skip

    def _data(self) -> str:
        """A hash of the first batch, if the seed determines it."""
        if self.setting.folder is None or not self.total:
            return ""
        one, other = (digest_of(self.batches.first()) for _ in range(2))
        if one != other:
            self.course.notes.append(said(
                "train() does not draw from the global generators, so a resumed training may see other batches"
            ))
        return one if one == other else ""

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.saved.write(self.course)
        self.accelerator.wait_for_everyone()
