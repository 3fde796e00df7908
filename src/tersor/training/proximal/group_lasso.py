"""The proximal operator of the L2 norms of groups of weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tersor.errors import NumericsError
from tersor.training.proximal.base import checked_weight


@dataclass(frozen=True)
class GroupLasso:
    """``w·max(0, 1 − strength/‖w‖)`` of each group: the minimum of ½‖v − w‖² + strength·Σ‖v_g‖ (arXiv 1608.03665).

    Whole outputs become zero together, and a step `prune` for channels then takes them without loss.

    Args:
        over: a group is the weights of one output (``outputs``), or all weights, biases and shifts that write a channel
            of a group that can only go together, such as one of a residual stream (``channels``).
        axis: the dimension that holds the outputs.

    >>> GroupLasso()(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """

    over: Literal["outputs", "channels"] = "outputs"
    axis: Literal[0, 1] = 0

    def __call__(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The shrunken weight; raises NumericsError for NaN or infinity, and for a negative strength."""
        weight = checked_weight(weight)
        axis = self.axis if weight.ndim > 1 else 0
        factor = _factors(weight.movedim(axis, 0).flatten(1), strength)
        return weight * factor.to(weight.dtype).reshape(-1, *[1] * (weight.ndim - 1 - axis))


@dataclass(frozen=True)
class Together:
    """Groups of channels across several parameters, shrunken behind each step of an optimizer.

    Args:
        groups: for each group of channels its parameters, the dimension that holds the channels, and their positions
            [channels, positions of one].
        strength: times the learning rate.
    """

    groups: Sequence[Sequence[tuple[Tensor, int, Tensor]]]
    strength: float

    @torch.no_grad()
    def __call__(self, optimizer: Any, args: Any = (), kwargs: Any = None) -> None:
        """A hook of ``Optimizer.register_step_post_hook``."""
        rates = {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for group in self.groups:
            stepped = [part for part in group if part[0].grad is not None]
            if stepped:
                shrink([(p.data, dim, places) for p, dim, places in group], self.strength * rates[stepped[0][0]])


def shrink(parts: Sequence[tuple[Tensor, int, Tensor]], strength: float) -> None:
    """One group of channels, in place: each channel's values in all tensors by one factor.

    >>> a, b = torch.tensor([[3.0], [0.3]]), torch.tensor([4.0, 0.4])
    >>> shrink([(a, 0, torch.tensor([[0], [1]])), (b, 0, torch.tensor([[0], [1]]))], 1.0)
    >>> a.tolist(), b.tolist()
    ([[2.4000000953674316], [0.0]], [3.200000047683716, 0.0])
    """
    rows = [t.movedim(dim, 0)[places.to(t.device)].flatten(1) for t, dim, places in parts]
    factor = _factors(torch.cat(rows, 1), strength)
    for tensor, dim, places in parts:
        view, places = tensor.movedim(dim, 0), places.to(tensor.device)
        view[places] = view[places] * factor.to(tensor.dtype).reshape(-1, *[1] * view.ndim)


def positions(channels: Mapping[tuple[str, int], Tensor], parameters: Mapping[str, Tensor]) -> list[Any]:
    """The parts of a group whose parameters are trained."""
    return [(parameters[name], dim, places) for (name, dim), places in channels.items() if name in parameters]


def _factors(rows: Tensor, strength: float) -> Tensor:
    """max(0, 1 − strength/‖row‖) of each row, float32."""
    if not 0 <= strength < float("inf"):
        raise NumericsError(f"the strength of a step is {strength:g}: it must be finite and not negative")
    norms = rows.float().square().sum(1).sqrt()
    return torch.where(norms > strength, 1 - strength / norms.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
