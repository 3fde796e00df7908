"""The nearest tensor of α·{0, ±l₁, … ±lₘ}, for any α > 0: exact, by sorting."""

import torch
from torch import Tensor

from tersor.numerics import QTensor, QuantSpec, expand, qparams
from tersor.numerics.qtensor import wide
from tersor.solvers.rtn import granules

# Elements sorted at once.
_CHUNK = 2**22


def on_levels(weight: Tensor, levels: tuple[int, ...], spec: QuantSpec) -> QTensor:
    """The codes of the nearest tensor whose magnitudes are 0 and ``levels`` (positive, rising) times one scale.

    Args:
        weight: finite.
        levels: magnitudes of codes, all within the format.
        spec: a symmetric one.
    """
    ends = torch.tensor(levels, dtype=torch.float64, device=weight.device)
    rows = granules(weight, spec)
    step = max(1, _CHUNK // (rows.shape[1] * len(levels)))
    alpha = torch.cat([best_scale(part.double(), ends) for part in rows.split(step)])
    alpha = alpha.reshape(spec.granularity.scale_shape(weight.shape))
    scale, zero_point = qparams(-alpha * spec.high, alpha * spec.high, spec)
    y = wide(weight) / expand(scale, weight.shape, spec.block)
    choice = torch.bucketize(y.abs(), midpoints(ends)[0].to(y.dtype))
    magnitude = torch.tensor((0, *levels), dtype=spec.format.dtype, device=weight.device)[choice]
    return QTensor(torch.where(y < 0, -magnitude, magnitude), scale, zero_point, spec)


def best_scale(rows: Tensor, levels: Tensor) -> Tensor:
    """The α of the smallest Σ(x − αq)² for each row of [rows, members], [rows]; 0 for a row of zeros.

    With codes q the best α is Σ|x|q / Σq², and the error Σx² − (Σ|x|q)²/Σq². As α falls, code after code moves up to
    the next level, when |x|/α passes the midpoint between two levels. These n·m turns, sorted, visit the nearest codes
    of every α, so the largest gain (Σ|x|q)²/Σq² among them is the global minimum.

    >>> x, levels = torch.tensor([[0.9, -1.1, 0.2]], dtype=torch.float64), torch.tensor([1.0]).double()
    >>> best_scale(x, levels)
    tensor([1.], dtype=torch.float64)
    """
    middle, step = midpoints(levels)
    size = rows.abs().unsqueeze(2)
    order = (size / middle).flatten(1).argsort(dim=1, descending=True, stable=True)
    products = (size * step).flatten(1).gather(1, order).cumsum_(1)
    powers = (2 * middle * step).repeat(rows.shape[1])[order].cumsum_(1)  # l² − l'² = 2·midpoint·(l − l')
    best = (products.square() / powers).argmax(1, keepdim=True)
    return (products.gather(1, best) / powers.gather(1, best)).squeeze(1)


def midpoints(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The midpoint below each level, and the distance to the level below (the lowest is 0)."""
    step = levels.diff(prepend=levels.new_zeros(1))
    return levels - step / 2, step


def refuses_levels(spec: QuantSpec, largest: int) -> str:
    """Why codes of ``spec`` cannot hold 0 and ± ``largest``; empty if they can."""
    if spec.format.kind == "float" or spec.format.name == "binary" or not spec.symmetric or not spec.format.signed:
        return "it needs symmetric codes with a zero, such as ternary or int4"
    return "" if spec.high >= largest else f"its largest code is {spec.high}, but {largest} is needed"
