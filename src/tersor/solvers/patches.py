"""im2col: the inputs that each output of a layer is a weighted sum of."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tersor.errors import CalibrationError, TersorError
from tersor.observers.gram import Gram
from tersor.process import importing
from tersor.solvers.problem import Geometry, LayerProblem

# Positions of one batch used for a convolution's matrix; neighbours are similar.
_POSITIONS = 2**14


def patches(problem: LayerProblem, rows: int, seed: int = 0) -> Float[Tensor, "..."]:
    """At most ``rows`` patches of the sample, at positions drawn with ``seed``.

    [groups, rows, in/groups·kernel]: times the flattened weight [groups, out/groups, in/groups·kernel],
    transposed, they are the layer's outputs without bias.

    Raises:
        CalibrationError: without a sample, or with one that does not fit the layer.

    >>> from tersor.numerics import QuantSpec
    >>> weight, picture = torch.ones(2, 1, 3, 3), torch.ones(1, 1, 3, 3)
    >>> geometry = Geometry(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    >>> problem = LayerProblem("conv", weight, QuantSpec("int8"), geometry, sample=picture)
    >>> patches(problem, rows=9).sum(-1).tolist()
    [[4.0, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0]]
    """
    problem.require(("sample",))
    x, kernel, groups = problem.sample, problem.weight.shape[2:], problem.geometry.groups
    assert x is not None
    inputs, axis = problem.weight.shape[1] * groups, 1 if kernel else -1
    if x.ndim < 2 or (kernel and x.ndim != 2 + len(kernel)) or x.shape[axis] != inputs or x.numel() == 0:
        raise CalibrationError(
            f"layer {problem.name}: a sample of shape {tuple(x.shape)} does not fit a weight of shape "
            f"{tuple(problem.weight.shape)} in {groups} groups: give inputs of this layer with {inputs} "
            f"channels in dimension {axis}"
        )
    x = x.detach().float()
    windows = _windows(x, kernel, problem.geometry) if kernel else x.reshape(-1, 1, inputs).squeeze(1)
    places = windows.shape[: 1 + len(kernel)]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(places.numel(), generator=generator)[:rows].sort().values.to(x.device)
    with importing():  # of PyTorch's own, at the first call
        found = windows[torch.unravel_index(chosen, places)]
    return found.reshape(len(chosen), groups, -1).transpose(0, 1).contiguous()


def _windows(x: Tensor, kernel: torch.Size, geometry: Geometry) -> Tensor:
    """A view [pictures, *output, channels, *kernel] of the padded input."""
    n = len(kernel)
    stride, dilation = geometry.stride or (1,) * n, geometry.dilation or (1,) * n
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if geometry.padding == "same":
        widths = [(span // 2, span - span // 2) for span in spans]
    elif geometry.padding == "valid":
        widths = [(0, 0)] * n
    else:
        widths = [(p, p) for p in geometry.padding or (0,) * n]  # type: ignore[list-item]
    x = F.pad(x, [w for pair in reversed(widths) for w in pair])
    for k in range(n):
        x = x.unfold(2 + k, spans[k] + 1, stride[k])[..., :: dilation[k]]
    return x.movedim(1, 1 + n)


def gram_of(problem: LayerProblem, x: Tensor, token_mask: Tensor | None = None) -> Gram:
    """The Gram matrix of one batch ``x`` of inputs of a linear layer or a convolution.

    Args:
        token_mask: bool [batch, length], True for real positions; ignored if the layer's input has other dimensions.

    Raises:
        CalibrationError: naming the layer whose input is NaN or infinite.
    """
    try:
        if problem.weight.ndim == 2:
            fits = token_mask is not None and x.shape[:-1] == token_mask.shape
            rows = token_mask.reshape(-1) if fits and token_mask is not None else None
            return Gram.of(x.reshape(1, -1, x.shape[-1]), rows)
        return Gram.of(patches(replace(problem, sample=x), _POSITIONS))
    except TersorError as error:
        raise type(error)(
            f"{problem.name}: {error}; look for bad samples in the calibration data, or for an overflow in an earlier "
            "layer"
        ) from error
