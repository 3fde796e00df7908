"""Torch-Pruning as its README shows it, and whether what it returns computes what the network with zeros does."""

import copy
import logging
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import quiet

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


SECONDS = 60


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if the body takes longer: the peer's walk over a graph need not end."""

    def stop(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Peer:
    """What it makes of a network.

    Args:
        verdict: "right", "wrong", "nothing pruned", "raises …" or "not installed".
        channels: output channels of layers that lost some.
        apart: the largest difference to the zeroed network, over the largest value.
    """

    verdict: str
    channels: int = 0
    apart: float = float("nan")


def outputs(model: nn.Module) -> dict[str, int]:
    """The output channels of each convolution and linear layer, by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            found[name] = int(getattr(module, "out_channels", 0) or getattr(module, "out_features", 0))
    return found


def torch_pruning(model: nn.Module, inputs: tuple[Tensor, ...], last: Iterable[str], ratio: float = 0.3) -> Peer:
    """30 % of the channels of each group by magnitude; the layers that make the output are ignored, as it asks."""
    try:
        import torch_pruning as tp
    except ImportError:
        return Peer("not installed")
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    model = _different(copy.deepcopy(model).double()).eval()
    inputs = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    small = copy.deepcopy(model)
    ignored = [module for name, module in small.named_modules() if name in set(last)]
    try:
        with quiet(), torch.enable_grad(), at_most(SECONDS):
            pruner = tp.pruner.MetaPruner(
                small, inputs[0], tp.importance.MagnitudeImportance(p=2), pruning_ratio=ratio, ignored_layers=ignored,
                output_transform=lambda out: sum(t.sum() for t in _tensors(out)),
            )  # fmt: skip
            pruner.step()
            with torch.no_grad():
                found = _tensors(small(*inputs))
    except Exception as error:  # it raises what it meets
        return Peer(f"raises {type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}")
    before, after = outputs(model), outputs(small)
    channels = sum(n for name, n in before.items() if after.get(name, n) < n)
    if not channels:
        return Peer("nothing pruned")
    zeroed = _zeroed(model, small)
    with torch.no_grad():
        wanted = _tensors(zeroed(*inputs))
    apart = max(_distance(a, b) for a, b in zip(wanted, found, strict=True))
    return Peer("right" if apart <= 1e-5 else "wrong", channels, apart)


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    values = out.values() if hasattr(out, "values") else out
    return [t for value in values if value is not None for t in _tensors(value)]


def _different(model: nn.Module) -> nn.Module:
    """No two values of a weight are equal, so that those that are left tell where they were."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 1e-2)
    return model


def _zeroed(model: nn.Module, small: nn.Module) -> nn.Module:
    """The network with zeros in all positions of its parameters that are gone."""
    model, left = copy.deepcopy(model), dict(small.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in left and left[name].shape != parameter.shape:
                parameter.mul_(_kept(parameter, left[name]))
    return model


def _kept(whole: Tensor, part: Tensor) -> Tensor:
    """Ones where a value of the whole is one of the part's, for whole positions of each dimension."""
    flat, order = whole.detach().flatten().sort()
    places = order[torch.searchsorted(flat, part.detach().flatten())].numpy()
    mask = torch.ones_like(whole)
    for dim, index in enumerate(np.unravel_index(places, tuple(whole.shape))):
        gone = np.setdiff1d(np.arange(whole.shape[dim]), index)
        mask.index_fill_(dim, torch.from_numpy(gone), 0)
    return mask


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-300))
