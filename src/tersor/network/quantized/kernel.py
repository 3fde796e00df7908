"""A recurrent layer as seen by an engine that computes all of it in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tersor.network.quantized.integer import version
from tersor.numerics import QTensor, QuantSpec

_is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor  # type: ignore[attr-defined]
State = tuple[Tensor, ...]
# A size is a symbol when a program is exported, and a tensor when it is traced.
Size = int | torch.SymInt | Tensor


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of one layer in one direction.

    Args:
        by_input: the weight ``[gates · hidden, in]``.
        by_state: the weight ``[gates · hidden, hidden or projection]``.
        project: the weight ``[projection, hidden]``, or None.
        input_bias: ``[gates · hidden]``, or None.
        state_bias: the same for the product with the state.
    """

    by_input: QTensor
    by_state: QTensor
    project: QTensor | None
    input_bias: Tensor | None
    state_bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A recurrent layer of any number of layers and directions, with its numbers.

    Args:
        mode: ``LSTM``, ``GRU``, ``RNN_TANH`` or ``RNN_RELU``.
        activation: how inputs and states are quantized at run time.
        layers: the directions of each layer, forward first.
    """

    mode: str
    activation: QuantSpec
    layers: tuple[tuple[Numbers, ...], ...]

    @property
    def tensors(self) -> list[Tensor]:
        """All codes and biases."""
        found: list[Tensor | None] = []
        for part in (part for directions in self.layers for part in directions):
            weights = (w for w in (part.by_input, part.by_state, part.project) if w is not None)
            found += [*(w.codes for w in weights), part.input_bias, part.state_bias]
        return [t for t in found if t is not None]


# Steps ``[steps, batch, in]``, or packed rows ``[sum(sizes), in]``, ``sizes[t]`` of them at time t, and the first state
# ``[layers · directions, batch, hidden]`` → packed outputs and the last state, all float32 on the CPU; None for a call
# that PyTorch computes faster.
Kernel = Callable[[Tensor, Sequence[int], State], tuple[Tensor, State] | None]
# None if no engine supports the layer.
Build = Callable[[Recurrence], Kernel | None]


def padded(values: Tensor, sizes: Sequence[int], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps or packed rows as ``[steps, batch, in]``, padded with zeros, and a mask of the rows ``[steps, batch]``.

    In NumPy, since PyTorch's threads, once used, keep waiting for work and block the engine's threads.

    >>> padded(torch.tensor([[1.0], [2.0], [3.0]]), [2, 1], 2)[0].squeeze(2).tolist()
    [[1.0, 2.0], [3.0, 0.0]]
    """
    array, length, batch = values.detach().numpy(), len(sizes), sizes[0]
    if length == steps and array.ndim == 3:
        return np.ascontiguousarray(array), np.ones((steps, batch), bool)
    active = np.arange(batch) < np.array([*sizes, *[0] * (steps - length)])[:, None]
    x = np.zeros((steps, batch, array.shape[-1]), np.float32)
    if array.ndim == 3:
        x[:length] = array
    else:
        x[active] = array
    return x, active


def packed(output: np.ndarray, sizes: Sequence[int], active: np.ndarray) -> Tensor:
    """The rows of ``[steps, batch, hidden]`` that are active."""
    whole = sizes[-1] == sizes[0]
    return torch.from_numpy(output[: len(sizes)].reshape(-1, output.shape[2]) if whole else output[active])


def is_finite(values: Tensor) -> bool:
    """Whether all values and their sum are finite; a sum over NaN or infinity is not.

    >>> is_finite(torch.ones(3)), is_finite(torch.tensor([1.0, torch.nan]))
    (True, False)
    """
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.detach().numpy().sum()))


class Prepared:
    """A kernel, or None, for the current buffers and parameters of a layer.

    >>> layer = nn.Linear(2, 2).requires_grad_(False)
    >>> prepared = Prepared(layer, lambda rows, sizes, state: (rows, state))
    >>> prepared.is_of_now(), prepared.takes(torch.ones(3, 2), ()), prepared.takes(torch.full((3, 2), torch.nan), ())
    (True, True, False)
    >>> _ = layer.weight.add_(1)
    >>> prepared.is_of_now()
    False
    """

    def __init__(self, layer: nn.Module, kernel: Kernel | None) -> None:
        self.kernel = kernel
        stores = [store for module in layer.modules() for store in (module._buffers, module._parameters)]
        self._found = [
            (store, name, tensor, version(tensor))
            for store in stores
            for name, tensor in store.items()
            if tensor is not None
        ]

    def is_of_now(self) -> bool:
        """Whether no buffer or parameter was written or replaced since."""
        return all(store.get(name) is tensor and version(tensor) == v for store, name, tensor, v in self._found)

    def takes(self, values: Tensor, state: State) -> bool:
        """Whether the engine computes these values as PyTorch would: on the CPU, finite, and without gradient."""
        given = (values, *state)
        if not all(type(t) is Tensor and t.device.type == "cpu" for t in given) or not values.numel():
            return False
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*given, *(t for _, _, t, _ in self._found))):
            return False
        # Tensors inside torch.func transforms have no memory of their own.
        if any(_is_wrapped(t) for t in given):
            return False
        # Integers computed from NaN look like any other number.
        return all(is_finite(t) for t in given)
