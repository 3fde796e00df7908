"""Ranges and scales, and their shapes; ``expand`` defines the convention."""

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.errors import NumericsError
from tersor.numerics.spec import QuantSpec

Scale = Float[Tensor, "..."]
Bound = Scale | float | int


def expand(t: Tensor, shape: tuple[int, ...] | torch.Size, block: int) -> Tensor:
    """Expand a scale or zero point to broadcast over a tensor of ``shape``.

    A scale has no dimensions, or as many as its tensor, each of size 1 (shared), n (one per index) or
    ``ceil(n / block)``: one for ``block`` neighbours, where the last group may be partial.

    Raises NumericsError for any other shape.

    >>> expand(torch.tensor([[1.0, 2.0]]), (3, 5), block=3)
    tensor([[1., 1., 1., 2., 2.]])
    """
    if not fits(t.shape, shape, block):
        raise NumericsError(
            f"a scale of shape {tuple(t.shape)}, in groups of {block}, does not fit a tensor of shape "
            f"{tuple(shape)}: Granularity.scale_shape gives the right shape"
        )
    for dim, (have, want) in enumerate(zip(t.shape, shape, strict=True) if t.ndim else ()):
        if have not in (1, want):
            t = t.repeat_interleave(block, dim).narrow(dim, 0, want)
    return t


def fits(scale: tuple[int, ...] | torch.Size, shape: tuple[int, ...] | torch.Size, block: int) -> bool:
    """Whether ``expand`` accepts a scale of that shape for a tensor of ``shape``.

    >>> fits((3, 2), (3, 5), block=3), fits((3, 2), (3, 5), block=0)
    (True, False)
    """
    pairs = zip(scale, shape, strict=False)
    blocked = all(have in (1, want) or (block > 0 and have == -(-want // block)) for have, want in pairs)
    return not len(scale) or (len(scale) == len(shape) and blocked)


def reduce_range(x: Float[Tensor, "..."], spec: QuantSpec) -> tuple[Scale, Scale]:
    """The minimum and maximum of ``x`` for each scale of ``spec``, in the scale's shape.

    Raises NumericsError if ``x`` is empty; NaN stays NaN, and ``qparams`` rejects it.

    >>> x = torch.tensor([[1.0, -2.0, 5.0], [0.0, 3.0, 4.0]])
    >>> low, high = reduce_range(x, QuantSpec("int8", "channel"))
    >>> low.tolist(), high.tolist()
    ([[-2.0], [0.0]], [[5.0], [4.0]])
    """
    if x.numel() == 0:
        raise NumericsError(f"a tensor of shape {tuple(x.shape)} is empty and has no range: keep it in float")
    shape = spec.granularity.scale_shape(x.shape)
    shared = [dim for dim, count in enumerate(shape) if count == 1]
    if spec.block:
        blocked = 0 if spec.granularity.kind == "filters" else 1
        x = _split_groups(x, blocked, spec.block)
        shared = [blocked + 1, *(dim + (dim > blocked) for dim in shared if dim != blocked)]
    low, high = (x.amin(shared), x.amax(shared)) if shared else (x, x)
    return low.reshape(shape), high.reshape(shape)


def _split_groups(x: Tensor, dim: int, block: int) -> Tensor:
    """Split ``dim`` into (groups, block); a partial last group is padded with its last element."""
    groups = -(-x.shape[dim] // block)
    if groups * block != x.shape[dim]:
        index = torch.arange(groups * block, device=x.device).clamp(max=x.shape[dim] - 1)
        x = x.index_select(dim, index)
    return x.unflatten(dim, (groups, block))


def qparams(low: Bound, high: Bound, spec: QuantSpec) -> tuple[Scale, Scale]:
    """The scale and zero point of a range, both float32; zero points are integers.

    The range is widened to include 0, so that 0 is exactly representable. Integers: symmetric,
    ``s = max|x| / high``; asymmetric, ``s = (high − low) / (codes − 1)`` and ``z = low_code − round(low/s)``.
    Floats: a plain cast (``s = 1``) if the format's range suffices, ``s = max|x| / limit`` for FP8 and
    beyond the range.

    The scale is the stored one: rounded to ``spec.scale_dtype``, upwards for 16 bits, so that the range stays covered,
    and at least the smallest normal number. An all-zero range gets the largest scale of the others (1 if there is
    none): any is right for its codes, and this one also suits the bias, which integer engines store with input scale ×
    weight scale.

    Raises:
        NumericsError: NaN or infinity, low > high, a scale too large for ``scale_dtype``, or negative values with
            symmetric unsigned codes.

    Jacob et al., arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342.

    >>> scale, zero_point = qparams(-700.0, 1000.0, QuantSpec("int8", symmetric=False))
    >>> round(scale.item(), 3), zero_point.item()
    (6.667, -23.0)
    """
    low, high = _checked_range(low, high, spec)
    scale = torch.maximum(-low, high) / spec.high if spec.symmetric else (high - low) / (spec.high - spec.low)
    if spec.format.kind == "float" and spec.format.bits > 8:
        scale = scale.clamp(min=1.0)
    # A binary code is never 0, so only a tiny scale dequantizes a dead channel to (nearly) 0.
    scale = _round_to_stored(scale if spec.format.name == "binary" else _fill_zero_scales(scale), spec.scale_dtype)
    if spec.symmetric:
        return scale, torch.zeros_like(scale)
    zero_point = (spec.low - low / scale).round().clamp(spec.low, spec.high)
    return scale, zero_point.float()


def _checked_range(low: Bound, high: Bound, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    low, high = (torch.as_tensor(bound, dtype=torch.float64).detach() for bound in (low, high))
    for name, bound in (("low", low), ("high", high)):
        if not bound.isfinite().all():
            bad = bound[~bound.isfinite()].reshape(-1)[0].item()
            raise NumericsError(f"the {name} end of a range is {bad}: check the data for NaN or infinity")
    if (low > high).any():
        raise NumericsError("a range has low > high: were they swapped?")
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if spec.symmetric and not spec.format.signed and (low < 0).any():
        raise NumericsError(
            f"{spec} has no negative values, but the range starts at {low.min().item():.6g}: "
            "use symmetric=False or a signed format"
        )
    return low, high


def _fill_zero_scales(scale: Tensor) -> Tensor:
    """Replace zero scales by the largest scale, or by 1 if all are zero."""
    largest = scale.max()
    return torch.where(scale == 0, torch.where(largest > 0, largest, 1.0), scale)


def _round_to_stored(scale: Tensor, dtype_name: str) -> Tensor:
    """Round ``scale`` (float64) to its stored dtype, as float32: positive, normal, finite."""
    dtype = getattr(torch, dtype_name)
    info = torch.finfo(dtype)
    scale = scale.clamp(min=info.smallest_normal)
    stored = scale.to(dtype)
    if dtype != torch.float32:
        # Adding half a step before rounding to nearest rounds up.
        stored = torch.where(stored < scale, (scale * (1 + info.eps / 2)).to(dtype), stored)
    if not stored.isfinite().all():
        raise NumericsError(f"a scale of {scale.max().item():.4g} overflows {dtype_name}: use float32")
    return stored.float()
