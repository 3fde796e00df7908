"""What training made: the trained tensors, written into the quantized network as they are deployed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tersor.network.network import Network, finish, set_tensor
from tersor.network.trainable.folding import DEAD
from tersor.network.trainable.graphs import Write
from tersor.network.trainable.module import Trainable
from tersor.numerics import QTensor


@torch.no_grad()
def network_of(student: Trainable) -> Network:
    """The quantized network with what was trained, as it is deployed: codes, scales, folded biases."""
    network = student._graphs.network.edit()
    for write, latent, factor in _written(student):
        for name, tensor in zip(write.names, _tensors(student, write, latent, factor), strict=True):
            old = network.tensor(name)
            set_tensor(network, name, tensor.detach().to("cpu", old.dtype).reshape(old.shape).clone())
    return finish(network)


@torch.no_grad()
def codes_of(student: Trainable) -> dict[str, QTensor]:
    """The codes of every weight that is quantized, by the name of the tensor in the quantized network."""
    weights = ((w, latent, f) for w, latent, f in _written(student) if w.quantizer and latent is not None)
    return {w.names[0]: _codes(student, w, latent, f) for w, latent, f in weights}


@torch.no_grad()
def grids_of(student: Trainable) -> dict[str, tuple[Tensor, Tensor]]:
    """Scale and zero point of every activation that is quantized, by the name of the scale."""
    activations = (w for w in student._graphs.writes if w.quantizer and w.source is None)
    return {w.names[0]: _grid(student, w) for w in activations}


def _written(student: Trainable) -> Iterator[tuple[Write, Tensor | None, Tensor | None]]:
    """Every write with its float tensor, before it is quantized, and the factor of its scales."""
    values = student._graphs.function("latents", student)(student)
    for write, (latent, factor) in zip(student._graphs.writes, values, strict=True):
        yield write, latent, factor


def _tensors(student: Trainable, write: Write, latent: Tensor | None, factor: Tensor | None) -> tuple[Tensor, ...]:
    if latent is None:
        return _grid(student, write)[: len(write.names)]
    if write.quantizer is None:
        return (latent,)
    found = _codes(student, write, latent, factor)
    return found.codes, found.scale, found.zero_point


def _grid(student: Trainable, write: Write) -> tuple[Tensor, Tensor]:
    quantizer: Any = student.get_submodule(str(write.quantizer))
    scale, zero_point = (t.detach().float() for t in quantizer.grid(student.batchnorm_frozen[None].float()))
    return scale, zero_point


def _codes(student: Trainable, write: Write, latent: Tensor, factor: Tensor | None) -> QTensor:
    quantizer: Any = student.get_submodule(str(write.quantizer))
    found = quantizer.qtensor(latent, factor)
    if factor is None or (factor > DEAD).all():
        return found
    # Any scale is right for codes of zero; integer engines divide biases by it.
    scale = torch.where(factor > DEAD, found.scale, found.scale.max())
    return QTensor(found.codes, scale, found.zero_point, found.spec)
