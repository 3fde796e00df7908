"""Verify that a change of a block's parameters keeps its output, or revert it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import RewriteError
from tersor.network.blocks.operators import tensors

Call = tuple[Sequence[Any], Mapping[str, Any]]
# Tolerance for rounding: in float32, and for 16-bit formats in units of the last place.
_FLOAT32_TOLERANCE, _HALF_ULPS = 1e-4, 16


@contextmanager
def unchanged(
    block: nn.Module,
    parameters: Mapping[str, Tensor],
    title: str,
    call: Call | None,
    tolerance: float | None = None,
    after: Call | None = None,
    expected: Callable[[Tensor], Tensor] = lambda x: x,
) -> Iterator[None]:
    """Restore ``parameters``, which the body changes in place, if the block's output changes or the body raises.

    ``after`` is the call to compare with if the input changes too, ``expected`` maps the old output to the new one.
    Raises RewriteError that begins with ``title``.
    """
    with torch.no_grad():
        saved = {n: p.clone() for n, p in parameters.items()}
        before = None if call is None else _floats(block(*call[0], **call[1]))
        try:
            yield
            if call is None or before is None:
                return
            args, kwargs = after or call
            result = _floats(block(*args, **kwargs))
            rounding = [_HALF_ULPS * torch.finfo(p.dtype).eps for p in parameters.values()]
            limit = max([_FLOAT32_TOLERANCE, *rounding]) if tolerance is None else tolerance
            error = max((difference(expected(a), b) for a, b in zip(before, result, strict=True)), default=0.0)
            if not error <= limit:
                raise RewriteError(
                    f"{title}: the relative change of the block's output is {error:.2g}, more than {limit:.2g}; the "
                    "block was restored: disable this rewrite"
                )
        except BaseException:
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
            raise


def difference(expected: Tensor, actual: Tensor) -> float:
    """The largest relative difference of a channel (last dimension), in norms over the other dimensions.

    Channels smaller than the median are compared relative to the median, so huge channels hide no other and dead ones
    do not count.

    >>> difference(torch.tensor([[1.0, 100.0, 1.0]]), torch.tensor([[1.5, 100.0, 1.0]]))
    0.5
    """
    expected, actual = (x.detach().double().reshape(-1, x.shape[-1] if x.ndim else 1) for x in (expected, actual))
    size = expected.norm(dim=0)
    size = torch.maximum(size, size.median()).clamp(min=1e-30)
    return float(((actual - expected).norm(dim=0) / size).max()) if expected.numel() else 0.0


def _floats(output: Any) -> list[Tensor]:
    return [t for t in tensors(output) if t.is_floating_point()]
