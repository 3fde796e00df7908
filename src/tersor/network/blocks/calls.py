"""The calls of a large model's blocks: recorded with stand-ins, so that each block is computed on its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tersor.errors import CaptureError
from tersor.network.blocks.chain import Blocks
from tersor.network.blocks.operators import tensors


class Halt(Exception):
    """Raised by a stand-in to stop the forward pass once the needed calls are recorded."""


@dataclass(frozen=True, eq=False)
class Returned:
    """What a block returns besides its hidden state.

    Args:
        tupled: the hidden state is returned in a tuple.
        rest: the other values of the tuple, those of the first block for one window.
        passed_on: later blocks read some of them (T5's position bias), so they are those of each batch.
    """

    tupled: bool = False
    rest: tuple[Any, ...] = ()
    passed_on: bool = False

    @classmethod
    def by(cls, output: Any) -> "Returned":
        """What a block returned."""
        return cls(True, tuple(output[1:])) if isinstance(output, tuple) else cls()

    def around(self, hidden: Tensor) -> Any:
        """The output with another hidden state."""
        return (hidden, *self.rest) if self.tupled else hidden


class _StandIn(nn.Module):
    """Replaces a block: records its arguments, and returns its input or a given output."""

    def __init__(self, block: nn.Module, returned: Returned) -> None:
        super().__init__()
        # Attributes that the model may read from its blocks, such as the kind of attention.
        self.__dict__.update({n: v for n, v in vars(block).items() if not n.startswith("_")})
        self.returned = returned
        self.called: tuple[tuple, dict] | None = None
        self.halts = False
        self.output: Tensor | None = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.called = ((hidden, *args), kwargs)
        if self.halts:
            raise Halt
        return self.returned.around(hidden if self.output is None else self.output)


class _First(_StandIn):
    """Stands in for the first block, which it computes for what it returns besides the hidden state."""

    def __init__(self, block: nn.Module, others: Sequence[_StandIn]) -> None:
        super().__init__(block, Returned())
        self.others = list(others)
        self.compute = block.forward

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.returned = Returned.by(self.compute(hidden, *args, **kwargs))
        for other in self.others:
            other.returned = self.returned
        return super().forward(hidden, *args, **kwargs)


@contextmanager
def _replace_blocks(blocks: Blocks, returned: Returned, computed: bool = False) -> Iterator[list[_StandIn]]:
    originals = list(blocks.modules)
    stand_ins = [_StandIn(block, returned) for block in originals]
    if computed:
        stand_ins[0] = _First(originals[0], stand_ins[1:])
    for k, stand_in in enumerate(stand_ins):
        blocks.modules[k] = stand_in
    try:
        yield stand_ins
    finally:
        for k, block in enumerate(originals):
            blocks.modules[k] = block


@torch.no_grad()
def calls(
    model: nn.Module, blocks: Blocks, inputs: Mapping[str, Any], returned: Returned | None = None, count: int = 0
) -> list:
    """The (positional, keyword) arguments that the model calls each block with; no block is computed.

    Every block is recorded with the first block's hidden states and its own other arguments. If the
    blocks' other results are passed on, the first block is computed to obtain them.

    Args:
        returned: what blocks return besides their hidden state; by default nothing.
        count: record only the first ``count`` blocks; 0 means all.

    Raises:
        CaptureError: the model does not call its blocks in order, each with the previous one's hidden states.
    """
    returned = returned or Returned()
    with _replace_blocks(blocks, returned, returned.passed_on) as stand_ins:
        stand_ins[(count or len(stand_ins)) - 1].halts = True
        try:
            model(**inputs)
        except Halt:
            recorded = [stand_in.called for stand_in in stand_ins[: count or len(stand_ins)]]
            _check_handed_on(blocks, recorded)
            return recorded
    raise CaptureError(
        f"{type(model).__name__} does not call its blocks {blocks.path} in order, so it cannot be streamed"
    )


def _check_handed_on(blocks: Blocks, recorded: Sequence[tuple[tuple, dict] | None]) -> None:
    """Each block must read the previous one's hidden states unchanged; the stand-ins return their input."""
    for k, (before, after) in enumerate(pairwise(recorded)):
        if before is None or after is None:
            raise CaptureError(
                f"the model does not call {blocks.name(k if before is None else k + 1)} for this text, so its blocks "
                "cannot be calibrated one by one: use a recipe without data, such as int8-weight"
            )
        if after[0][0] is not before[0][0] and not torch.equal(after[0][0], before[0][0]):
            raise CaptureError(
                f"the model changes the hidden states between {blocks.name(k)} and {blocks.name(k + 1)}, so its blocks "
                "cannot be calibrated one by one: use a recipe without data, such as int8-weight"
            )


@torch.no_grad()
def probe(model: nn.Module, blocks: Blocks, inputs: Mapping[str, Any]) -> tuple[Tensor, Returned]:
    """The first block's hidden states for one window, and what it returns; its weights are loaded.

    Raises:
        CaptureError: the blocks cannot be computed one by one, and why.
    """
    ((hidden, *args), kwargs) = calls(model, blocks, inputs, count=1)[0]
    length = next(iter(inputs.values())).shape[1]
    if not isinstance(hidden, Tensor) or hidden.shape[:-1] != (1, length):
        shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise CaptureError(
            f"{blocks.name(0)} is called with {shape}, not with hidden states [batch, length, width], so its inputs "
            "cannot be stored by window: use a recipe without data, such as int8-weight"
        )
    output, again = (blocks.modules[0](hidden, *args, **kwargs) for _ in range(2))
    if not _equal(tensors([output]), tensors([again])):
        raise CaptureError(
            f"{blocks.name(0)} computes something else when it is called again (a cache among its arguments?), so it "
            "cannot be calibrated: use a recipe without data, such as int8-weight"
        )
    returned = Returned.by(output)
    as_given = _arguments(model, blocks, inputs, returned, hidden)
    for k, (ours, moved) in enumerate(
        zip(as_given, _arguments(model, blocks, inputs, returned, hidden * 2 + 1), strict=True)
    ):
        if not _equal(ours, moved):
            raise CaptureError(
                f"an argument of {blocks.name(k)} is computed from the outputs of earlier blocks, so its blocks "
                "cannot be calibrated one by one: use a recipe without data, such as int8-weight"
            )
    other = tuple(tree_map_only(Tensor, lambda t: t * 2 + 1 if t.is_floating_point() else t, returned.rest))
    read = _arguments(model, blocks, inputs, Returned(returned.tupled, other), hidden)
    passed_on = not all(map(_equal, as_given, read))
    calls(model, blocks, inputs, returned)
    return hidden, Returned(returned.tupled, returned.rest, passed_on)


def _arguments(
    model: nn.Module, blocks: Blocks, inputs: Mapping[str, Any], returned: Returned, hidden: Tensor
) -> list[list[Tensor]]:
    """The tensors among each block's arguments besides the hidden states, if the first block returns ``hidden``."""
    with _replace_blocks(blocks, returned) as stand_ins:
        stand_ins[0].output = hidden
        stand_ins[-1].halts = True
        with suppress(Halt):
            model(**inputs)
        found = [stand_in.called or ((None,), {}) for stand_in in stand_ins]
    return [tensors([list(args[1:]), kwargs]) for args, kwargs in found]


def _equal(ours: list[Tensor], others: list[Tensor]) -> bool:
    return [t.shape for t in ours] == [t.shape for t in others] and all(map(torch.equal, ours, others))


@torch.no_grad()
def check_second(blocks: Blocks, returned: Returned, recorded: list) -> None:
    """Check on the second block that blocks pass on what the first one returned; its weights are loaded.

    Raises:
        CaptureError: the second block returns something else, which the third would read.
    """
    args, kwargs = recorded[1]
    own = Returned.by(blocks.modules[1](*args, **kwargs))
    theirs, ours = tensors(list(returned.rest)), tensors(list(own.rest))
    if not _equal(ours, theirs):
        raise CaptureError(
            f"{blocks.name(1)} returns something else besides its hidden states than {blocks.name(0)}, and later "
            "blocks read it, so they cannot be calibrated one by one: use a recipe without data, such as int8-weight"
        )


@torch.no_grad()
def run_tail(model: nn.Module, blocks: Blocks, inputs: Mapping[str, Any], hidden: Tensor, returned: Returned) -> Any:
    """The model's output, given ``hidden`` as the last block's output."""
    with _replace_blocks(blocks, returned) as stand_ins:
        stand_ins[-1].output = hidden
        return model(**inputs)


@torch.no_grad()
def call(block: nn.Module, hidden: Tensor, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """One block's output for ``hidden [batch, length, width]``."""
    out = block(hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


def plain(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments for a call without a cache, which a nested configuration may request."""
    config = getattr(model, "config", None)
    parts = (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ())))
    return {**inputs, **({"use_cache": False} if any(hasattr(part, "use_cache") for part in parts) else {})}
