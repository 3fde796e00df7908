"""Low-rank adapters: added to a quantized weight, which is then rounded again."""

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.numerics import QTensor
from tersor.numerics.qtensor import quantize
from tersor.numerics.ranges import expand
from tersor.solvers import LayerProblem, Rtn


def merged(codes: QTensor, delta: Float[Tensor, "out in"]) -> tuple[QTensor, float]:
    """The codes of ``codes + delta``, in the same spec.

    Each scale is kept, or fitted again to its weights (smallest squared error), whichever loses less. LoRA:
    arXiv 2106.09685.

    Args:
        delta: [out, in], the product B·A of an adapter times its scaling.

    Returns:
        The codes; and the power of what rounding loses over that of ``delta`` (0 for a delta of zero).

    >>> from tersor.numerics import QuantSpec, quantize_tensor
    >>> codes = quantize_tensor(torch.tensor([[1.0, 3.0]]), QuantSpec("int4", "channel"))
    >>> after, lost = merged(codes, torch.tensor([[2.0, -1.0]]))
    >>> [round(w, 2) for w in after.dequantize()[0].tolist()], round(lost, 4)
    ([2.84, 2.03], 0.0002)
    """
    weight, spec = codes.dequantize() + delta.float(), codes.spec.with_(rounding="nearest")
    shape = spec.granularity.scale_shape(codes.shape)
    scale, zero = codes.scale.reshape(shape), codes.zero_point.reshape(shape)
    kept = QTensor(quantize(weight, scale, zero, spec), scale, zero, spec)
    fitted = Rtn("mse")(LayerProblem("weight", weight, spec)).qtensor
    losses = [_power(q.dequantize() - weight, shape, spec.block) for q in (fitted, kept)]
    better = losses[0] < losses[1]
    scale = torch.where(better, fitted.scale.reshape(shape), scale)
    zero = torch.where(better, fitted.zero_point.reshape(shape), zero)
    found = QTensor(quantize(weight, scale, zero, spec), scale, zero, codes.spec)
    power = delta.float().square().sum().item()
    lost = (found.dequantize() - weight).square().sum().item()
    return found, lost / power if power else 0.0


def _power(error: Tensor, shape: tuple[int, ...], block: int) -> Tensor:
    """The squared error of all values that share a scale, in the scales' shape."""
    count = torch.Size(shape).numel()
    owner = expand(torch.arange(count).reshape(shape), error.shape, block).broadcast_to(error.shape).reshape(-1)
    return torch.zeros(count).index_add(0, owner, error.square().reshape(-1)).reshape(shape)
