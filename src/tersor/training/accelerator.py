"""Processes, devices and trackers of a training, by accelerate, whose global state is left as the caller has it."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import TaskError
from tersor.packages import needing


@contextmanager
def accelerated(
    device: torch.device | None, trackers: Sequence[str] = (), folder: Path | None = None
) -> Iterator[Any]:
    """An ``Accelerator`` of our own, on this device, or with the devices of ``accelerate launch`` or ``torchrun``.

    Afterwards an Accelerator of the caller's has its state again, and the number of threads is the caller's; a process
    group stays.

    Args:
        folder: where trackers write files; None: the current folder.

    Raises:
        TaskError: accelerate is not installed, or the processes were started without a launcher.
    """
    with needing("Training", "train", ["accelerate"], TaskError):
        from accelerate.state import AcceleratorState, GradientState, PartialState
    shared: list[Any] = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    kept, threads, named = [dict(values) for values in shared], torch.get_num_threads(), "ACCELERATE_TORCH_DEVICE"
    before, launched = os.environ.get(named), "LOCAL_RANK" in os.environ
    _check_launched(launched)
    for values in shared:
        values.clear()
    cpu = device is None or device.type == "cpu"
    if not cpu and not launched:
        os.environ[named] = str(device)
    accelerator = None
    try:
        accelerator = _made(_launched_on_cpu(device) if launched else cpu, list(trackers), folder)
        yield accelerator
    finally:
        for tracker in getattr(accelerator, "trackers", ()):
            tracker.finish()
        for values, old in zip(shared, kept, strict=True):
            values.clear()
            values.update(old)
        if not cpu and not launched:
            os.environ.pop(named)
            os.environ.update({} if before is None else {named: before})
        torch.set_num_threads(threads)


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one: it measures and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_accelerator(trackers: Sequence[str]) -> None:
    """Refuse what ``accelerated`` could not make.

    Raises:
        TaskError: accelerate, or the package of a tracker, is not installed; or there is no such tracker.

    >>> check_accelerator(["notebook"])
    Traceback (most recent call last):
    tersor.errors.TaskError: there is no tracker 'notebook': accelerate has aim, ...
    """
    with needing("Training", "train", ["accelerate"], TaskError):
        if importlib.util.find_spec("accelerate") is None:
            raise ModuleNotFoundError("accelerate is not installed", name="accelerate")
    if not trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TaskError(f"there is no tracker {name!r:.80}: accelerate has {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in there:
            raise TaskError(f"the tracker {name} is not installed here; run: pip install {name.replace('_', '-')}")


def _launched_on_cpu(device: torch.device | None) -> bool:
    """Whether the processes of a launcher compute on the CPU: asked for, or nothing else is there."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return asked or (device is not None and device.type == "cpu") or not torch.accelerator.is_available()


def _check_launched(launched: bool) -> None:
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    if group and not launched and torch.distributed.get_world_size() > 1:
        raise TaskError(
            f"torch.distributed runs {torch.distributed.get_world_size()} processes, but LOCAL_RANK is not set: start "
            "them by `accelerate launch` or `torchrun`"
        )


def _made(cpu: bool, trackers: list[str], folder: Path | None) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # A loss may leave a layer out, and a schedule a quantizer.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    logging = {"log_with": trackers, "project_dir": str(folder or Path())} if trackers else {}
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[unused], **logging)
    if trackers:
        accelerator.init_trackers("tersor")
    return accelerator


@torch.no_grad()
def share_buffers(student: nn.Module, accelerator: Any) -> None:
    """Set the buffers of all processes to their mean: they differ by the batches that each has seen."""
    if accelerator.num_processes > 1:
        for buffer in student.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer, "mean"))


def share_gradients(module: nn.Module | None, accelerator: Any) -> None:
    """Set the gradients of a module that is not wrapped to the mean over all processes."""
    if accelerator.num_processes > 1 and module is not None:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")


def shared(value: float, accelerator: Any) -> float:
    """The mean of a number over all processes, the same on each, so that all decide alike."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float32 if accelerator.device.type == "mps" else torch.float64)
    found: Tensor = accelerator.reduce(tensor.to(accelerator.device), "mean")
    return float(found)
