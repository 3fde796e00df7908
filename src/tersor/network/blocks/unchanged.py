"""A change of a block's parameters that must not change what it computes: proved, or taken back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import RewriteError
from tersor.network.blocks.operators import tensors

Call = tuple[Sequence[Any], Mapping[str, Any]]
# What rounding may do: in float32, and in formats of 16 bits, there in units of the last place.
_LEAST, _PLACES = 1e-4, 16


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
    """Let the body change ``parameters`` in place; where that changes the block's output, or it raises, restore them.

    ``after`` is the call to compare with where the input must be another one too, ``expected`` what then becomes of the
    output. Raises RewriteError that begins with ``title``.
    """
    with torch.no_grad():
        saved = {n: p.clone() for n, p in parameters.items()}
        before = None if call is None else _floats(block(*call[0], **call[1]))
        try:
            yield
            if call is None or before is None:
                return
            args, kwargs = after or call
            now = _floats(block(*args, **kwargs))
            rounding = [_PLACES * torch.finfo(p.dtype).eps for p in parameters.values()]
            limit = max([_LEAST, *rounding]) if tolerance is None else tolerance
            error = max((difference(expected(a), b) for a, b in zip(before, now, strict=True)), default=0.0)
            if not error <= limit:
                raise RewriteError(
                    f"{title}: the block's output changed by {error:.2g} of itself, more than {limit:.2g}; it was left "
                    "as it was: leave this rewrite out"
                )
        except BaseException:
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
            raise


def difference(wanted: Tensor, found: Tensor) -> float:
    """The largest relative difference of a channel (the last dimension), in norms over the rest.

    A channel smaller than the median one is measured by that: huge channels hide no other, and dead ones tell nothing.

    >>> difference(torch.tensor([[1.0, 100.0, 1.0]]), torch.tensor([[1.5, 100.0, 1.0]]))
    0.5
    """
    wanted, found = (x.detach().double().reshape(-1, x.shape[-1] if x.ndim else 1) for x in (wanted, found))
    size = wanted.norm(dim=0)
    size = torch.maximum(size, size.median()).clamp(min=1e-30)
    return float(((found - wanted).norm(dim=0) / size).max()) if wanted.numel() else 0.0


def _floats(output: Any) -> list[Tensor]:
    return [t for t in tensors(output) if t.is_floating_point()]
