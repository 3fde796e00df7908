"""Train the quantized weights of one block of a large model against the block's own float output."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from tersor.errors import CalibrationError
from tersor.numerics import QTensor
from tersor.numerics.ranges import expand
from tersor.training.language.best import OnEpoch, TokenError, Trained, train_best
from tersor.training.quantizers import Start, quantizer

# How far a latent weight may start from its code, in steps: slightly less than the half that rounds to another.
_CELL = 0.49
# A token counts as if its power were at least this share of the mean.
_LEAST = 1e-6



@dataclass(frozen=True)
class BlockTraining:
    """Options of training a language model block by block, then its scales end to end.

    EfficientQAT, arXiv 2407.11062. Its rates are absolute (2e-5 for weights of a 7B model at 2 bits); these are
    relative, so that they fit weights of any size.

    Args:
        epochs: passes of each block over the calibration windows.
        batch: windows per update.
        weight_rate: of the latent weights, in units of a weight's mean scale.
        scale_rate: of the logarithms of the scales; zero points move by as many codes.
        norms: train the norms and biases of the block too, at ``scale_rate`` of their own mean size.
        held_out: the share of the windows that only judges whether training paid off.
        end_to_end: what is trained in passes of the whole model: ``scales`` alone, or ``weights`` too.
        end_to_end_epochs: these passes over the calibration windows.
        end_to_end_rate, end_to_end_weight_rate: of the logarithms of the scales and of the latent weights in them.
    """

    epochs: Annotated[int, Ge(1)] = 3
    batch: Annotated[int, Ge(1)] = 2
    weight_rate: Annotated[float, Gt(0)] = 0.004
    scale_rate: Annotated[float, Ge(0)] = 0.003
    norms: bool = True
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.125
    end_to_end: Literal["scales", "weights"] = "scales"
    end_to_end_epochs: Annotated[int, Ge(0)] = 3
    end_to_end_rate: Annotated[float, Gt(0)] = 0.02
    end_to_end_weight_rate: Annotated[float, Gt(0)] = 0.03

    def held_out_of(self, count: int) -> int:
        """How many of ``count`` batches are held out: the last ones, at least one.

        Raises:
            CalibrationError: none is left to train.
        """
        held = max(1, round(self.held_out * count))
        if count <= held:
            raise CalibrationError(
                f"the calibration text is {count} batches, of which {held} are held out, so nothing is left to train: "
                "give more text or --samples, or a smaller `batch`"
            )
        return held


@dataclass(frozen=True, eq=False)
class Part:
    """A weight of a module.

    Args:
        parameter: the name in the module of the parameter that it belongs to.
        part: the weight [out, in] as a view of that parameter.
    """

    parameter: str
    part: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SolvedPart(Part):
    """A quantized weight of a block, where training starts.

    Args:
        name: the readable name, for errors.
        weight: float [out, in], the original values.
        start: the solver's codes.
    """

    name: str
    weight: Tensor
    start: QTensor


@dataclass(frozen=True, eq=False)
class BlockBatch:
    """A batch of a block's calls.

    Args:
        hidden: [windows, length, width], the inputs behind the blocks that are quantized already.
        args, kwargs: the block's other arguments.
        target: [windows, length, width], the output of the float block in the float model.
        token_mask: bool [windows, length], True for real positions; None: all are real.
    """

    hidden: Tensor
    args: tuple
    kwargs: Mapping[str, Any]
    target: Tensor
    token_mask: Tensor | None = None


def placed(module: nn.Module, parts: Sequence[Part], values: Iterable[Tensor]) -> dict[str, Tensor]:
    """The parameters of a module with the values of their parts, by name, in the module's dtype."""
    found: dict[str, Tensor] = {}
    for part, value in zip(parts, values, strict=True):
        stored = module.get_parameter(part.parameter).detach()
        if part.part(stored).is_set_to(stored):  # the whole parameter, neither a slice nor transposed
            found[part.parameter] = value.to(stored.dtype)
            continue
        if part.parameter not in found:
            found[part.parameter] = stored.clone()
        part.part(found[part.parameter]).copy_(value)
    return found


class TrainableBlock(nn.Module):
    """A block with latent weights and quantizers; its output is that of the codes, bit for bit.

    Args:
        block: the module, with the parameters that are not quantized.
        parts: its quantized weights.
        names: its norms and biases that are trained, too.
    """

    def __init__(self, block: nn.Module, parts: Sequence[SolvedPart], names: Sequence[str] = ()) -> None:
        super().__init__()
        self._block, self._parts = (block,), tuple(parts)  # in tuples: they are no submodules
        self.latents = nn.ParameterList([latent(p.weight, p.start) for p in parts])
        starts = [Start(p.name, p.start.spec, p.start.scale, p.start.zero_point, p.weight) for p in parts]
        self.quantizers = nn.ModuleList([quantizer("lsq" if s.spec.symmetric else "lsq+", s) for s in starts])
        self.names = tuple(names)
        self.others = nn.ParameterList([block.get_parameter(n).detach().float().clone() for n in names])

    def values(self) -> dict[str, Tensor]:
        """The block's trained parameters, by name, in its own dtype."""
        block = self._block[0]
        values = [quantize(weight) for weight, quantize in zip(self.latents, self.quantizers, strict=True)]
        return placed(block, self._parts, values) | self.norms()

    def norms(self) -> dict[str, Tensor]:
        """The trained norms and biases, by name, in the block's dtype."""
        pairs = zip(self.names, self.others, strict=True)
        return {name: value.to(self._block[0].get_parameter(name).dtype) for name, value in pairs}

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[batch, length, width]`` → the same shape."""
        out = torch.func.functional_call(self._block[0], self.values(), (hidden, *args), dict(kwargs))
        return out[0] if isinstance(out, tuple) else out

    def qtensors(self) -> list[QTensor]:
        """The codes of each part."""
        return [q.qtensor(w.detach()) for q, w in zip(self.quantizers, self.latents, strict=True)]  # type: ignore[operator]

    def groups(self, weight_rate: float, scale_rate: float) -> list[dict[str, Any]]:
        """The optimizer's parameters with their rates, as ``BlockTraining`` defines them."""
        found = []
        for part, weight, quantize in zip(self._parts, self.latents, self.quantizers, strict=True):
            found.append({"params": [weight], "lr": weight_rate * part.start.scale.mean().item()})
            found.append({"params": list(quantize.parameters()), "lr": scale_rate})
        for value in self.others:
            found.append({"params": [value], "lr": scale_rate * value.detach().abs().mean().item()})
        return found


def norms_of(module: nn.Module) -> list[str]:
    """The names of its norms and biases.

    >>> norms_of(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    ['0.bias', '1.weight', '1.bias']
    """
    return [name for name, p in module.named_parameters() if p.ndim < 2 and p.is_floating_point()]


def latent(weight: Tensor, start: QTensor) -> nn.Parameter:
    """The float weight moved into the cells of the codes, as little as possible, so that it rounds to them.

    >>> from tersor.numerics import QuantSpec
    >>> one = torch.ones(1, 1)
    >>> codes = QTensor(torch.tensor([[1, 0, -1]], dtype=torch.int8), one, 0 * one, QuantSpec("int2", "channel"))
    >>> [round(w, 2) for w in latent(torch.tensor([[0.7, 0.7, -9.0]]), codes)[0].tolist()]
    [0.7, 0.49, -1.0]
    """
    spec, shape = start.spec, start.shape
    scale, zero = (expand(t, shape, spec.block) for t in (start.scale, start.zero_point))
    steps, code = weight.float() / scale, start.codes.float() - zero
    # Inside the range, too, where gradients pass.
    steps = torch.minimum(torch.maximum(steps, code - _CELL), code + _CELL)
    return nn.Parameter(torch.minimum(torch.maximum(steps, spec.low - zero), spec.high - zero) * scale)


def train_block(
    block: nn.Module,
    parts: Sequence[SolvedPart],
    batch: Callable[[int], BlockBatch],
    count: int,
    options: BlockTraining,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> tuple[TrainableBlock, Trained]:
    """Train the weights, scales and zero points of a block; the best epoch on the held-out batches is kept.

    Args:
        batch: gives one of the ``count`` batches; the last ones are held out.
        on_epoch: called with the number of epochs done and the held-out error.

    Raises:
        CalibrationError: too few batches, or a loss that is not finite, with the epoch.
    """
    held = options.held_out_of(count)
    student = TrainableBlock(block, parts, norms_of(block) if options.norms else ())
    optimizer = torch.optim.AdamW(student.groups(options.weight_rate, options.scale_rate), weight_decay=0.0)
    objective = TokenError(_errors, "the error of the block", "weight_rate")
    found = train_best(student, optimizer, objective, batch, count, held, options.epochs, seed, on_epoch)
    return student, found


def block_error(student: TrainableBlock, batches: Iterable[BlockBatch]) -> float:
    """The power of the output's error over that of the float output, the mean over all tokens.

    Tokens count alike, however large they are in the residual stream, since the next norm divides by their size.
    """
    return TokenError(_errors, "", "").mean(student, batches)


def _errors(student: TrainableBlock, batch: BlockBatch) -> tuple[Tensor, int]:
    """The sum of the relative errors over real positions, and their number."""
    target = batch.target.float()
    error = (student(batch.hidden, *batch.args, **batch.kwargs).float() - target).square().mean(-1)
    power = target.square().mean(-1)
    each = error / power.clamp(min=_LEAST * power.mean().item() + torch.finfo(torch.float32).tiny)
    each = each if batch.token_mask is None else each[batch.token_mask]
    return each.sum(), each.numel()
