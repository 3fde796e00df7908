"""What a block's products read, and what they should give: the moments from which atoms are rated and layers fitted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import CalibrationError
from tersor.network.blocks.calls import call
from tersor.network.blocks.reads import watching
from tersor.solvers.structured import Moments

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Product:
    """A weight that a product reads.

    Args:
        parameter: its name in the block.
        expert: of a parameter of all experts; None for a matrix.
        turned: it is stored ``[in, out]``.
    """

    parameter: str
    expert: int | None = None
    turned: bool = False

    def matrix(self, block: nn.Module) -> Tensor:
        """The weight as ``[out, in]``, a view."""
        value = block.get_parameter(self.parameter).detach()
        value = value if self.expert is None else value[self.expert]
        return value.mT if self.turned else value

    def bias(self, block: nn.Module) -> nn.Parameter | None:
        """The bias of a linear layer."""
        path, _, key = self.parameter.rpartition(".")
        found = block.get_submodule(path)._parameters.get("bias") if key == "weight" and self.expert is None else None
        return found


@dataclass(frozen=True, eq=False)
class Both:
    """One batch in the dense and in the pruned model.

    Args:
        reference, hidden: the block's input there and here, ``[batch, length, width]``.
        old, new: the other arguments there and here.
        mask: bool ``[batch, length]``, True for real tokens; None: all are real.
        after: the dense hidden state that the block's output should be; None: that of the same block.
    """

    reference: Tensor
    hidden: Tensor
    old: Arguments
    new: Arguments
    mask: Tensor | None = None
    after: Tensor | None = None


@dataclass(eq=False)
class Seen:
    """What one product read.

    Args:
        moments: of its inputs, and of the outputs that it should have.
        zeros: the sum over rows of inputs that are zero, ``[in]``.
    """

    moments: Moments
    zeros: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows of inputs and wanted outputs."""
        zeros = (x == 0).sum(0)
        self.zeros = zeros if self.zeros is None else self.zeros + zeros
        self.moments.add(x, y)


@dataclass(eq=False)
class _Run:
    """One run of a block: the inputs of products as rows, and what their outputs are added to."""

    inputs: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)
    streams: dict[str, Tensor] = field(default_factory=dict)
    turned: dict[str, bool] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


@torch.no_grad()
def _run(block: nn.Module, hidden: Tensor, arguments: Arguments, names: Iterable[str]) -> _Run:
    found = _Run()

    def see(name: str, index: int | None, turned: bool, x: Tensor) -> None:
        rows = x.flatten(0, -2).clone()
        known = found.inputs.get((name, index))
        found.inputs[name, index] = rows if known is None else torch.cat((known, rows))
        found.turned[name] = turned
        found.places.setdefault(name, (x.data_ptr(), x.numel()))

    def added(name: str, product: Tensor, stream: Tensor) -> None:
        found.streams.setdefault(name, stream.flatten(0, -2).float().clone())

    with watching(block, {name: block.get_parameter(name) for name in names}, see, added):  # type: ignore[misc]
        call(block, hidden, *arguments)
    return found


@dataclass(frozen=True)
class Order:
    """How a block reads its matrices.

    Args:
        groups: in the order of the products, those with one input together; without those of experts.
        turned: whether each parameter is stored ``[in, out]``; of experts, too.
        added: the parameters whose product is added to the residual stream as it is, in order.
    """

    groups: tuple[tuple[Product, ...], ...]
    turned: dict[str, bool]
    added: tuple[str, ...]


def order_of(block: nn.Module, batch: Both, names: Iterable[str]) -> Order:
    """How the dense block reads these parameters, from one batch."""
    found, groups, before = _run(block, batch.reference, batch.old, names), list[list[Product]](), None
    for name, index in found.inputs:
        if index is None:
            product = Product(name, None, found.turned[name])
            if found.places[name] == before:
                groups[-1].append(product)
            else:
                groups.append([product])
            before = found.places[name]
    return Order(tuple(map(tuple, groups)), found.turned, tuple(found.streams))


@torch.no_grad()
def observe(
    old: nn.Module, new: nn.Module, products: Sequence[Product], batches: Iterable[Both], name: str
) -> dict[Product, Seen]:
    """Run both blocks, and collect what the new block's products read and should give.

    A product that is added to the stream should give the dense sum minus the present stream; another one, what it
    gives in the dense block; an expert, what its dense weight makes of the present inputs, as routes may differ.

    Args:
        old: the dense block; new: the present one, possibly the same module.
        name: of the block, for errors.
    """
    seen = {p: Seen(Moments(p.matrix(new).shape[1], p.matrix(new).shape[0])) for p in products}
    names = {p.parameter for p in products}
    for batch in batches:
        then, now = _run(old, batch.reference, batch.old, names), _run(new, batch.hidden, batch.new, names)
        for product, found in seen.items():
            key = product.parameter, product.expert
            if key not in now.inputs:
                continue
            x, weight = now.inputs[key].float(), product.matrix(old).float()
            if product.expert is not None:
                found.add(x.cpu(), (x @ weight.T).cpu())
                continue
            bias, stream = product.bias(old), now.streams.get(product.parameter)
            y = then.inputs[key].float() @ weight.T
            y = y if bias is None else y + bias.detach().float()
            if batch.after is not None and stream is not None:
                y = batch.after.flatten(0, -2).float() - stream
            elif stream is not None and product.parameter in then.streams:
                y = y + then.streams[product.parameter] - stream
            real = slice(None) if batch.mask is None else batch.mask.flatten()
            found.add(x[real].cpu(), y[real].cpu())
    for product, found in seen.items():
        if not found.moments.finite:
            raise CalibrationError(
                f"{name}.{product.parameter}: its inputs or outputs on the calibration text are NaN or infinite: look "
                "for bad text, or take a folder in bfloat16 or float32"
            )
    return seen
