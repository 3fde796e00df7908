"""A large model as a list of blocks: found, not looked up in a table, and filled one at a time."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tersor.errors import CaptureError


@dataclass(frozen=True, eq=False)
class Blocks:
    """The repeated part of a model.

    Args:
        path: the dotted name of the list.
        modules: its members, in the order in which they run.
    """

    path: str
    modules: nn.ModuleList

    def name(self, number: int) -> str:
        """The dotted name of a block."""
        return f"{self.path}.{number}"

    def __len__(self) -> int:
        return len(self.modules)


def find_blocks(model: nn.Module) -> Blocks:
    """The longest list of alike modules that lies in no other list.

    Raises:
        CaptureError: there is no list, or two of the same length, or an encoder beside a decoder.

    >>> model = nn.Sequential(nn.Embedding(4, 2), nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]))
    >>> found = find_blocks(model)
    >>> found.path, len(found)
    ('1', 3)
    """
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer, _ in lists)
        alike = isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1
        if alike and not inside and any(p.ndim > 1 for p in module.parameters()):
            lists.append((name, module))  # type: ignore[arg-type]
    if not lists:
        raise CaptureError(
            f"{type(model).__name__} has no nn.ModuleList of alike modules, so that there are no blocks to stream; "
            "compress it whole: tersor.compress with a Task"
        )
    lists.sort(key=lambda one: -len(one[1]))
    two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if len(lists) > 1 and (two or len(lists[0][1]) == len(lists[1][1])):
        (first, own), (second, others) = lists[:2]
        counts = f"{len(own)} blocks" if len(own) == len(others) else f"{len(own)} and {len(others)} blocks"
        raise CaptureError(
            f"{type(model).__name__} has two lists of {counts}, {first} and {second} (an encoder and a decoder?); only "
            "one chain of blocks can be streamed: compress it whole with a Task"
        )
    return Blocks(*lists[0])


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While inside, modules that this thread builds have parameters without storage; their buffers are real.

    >>> with parameters_on_meta():
    ...     layer = nn.BatchNorm1d(10**6)
    >>> layer.weight.device.type, layer.running_mean.device.type
    ('meta', 'cpu')
    """
    builder = threading.get_ident()

    def moved(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != builder:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(moved)
    try:
        yield
    finally:
        hook.remove()


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters (and buffers) their values; every use of a tied one gets the same."""
    for name, value in tensors.items():
        old = held(model, name)
        # One object for all uses: by that they are known to be tied.
        new = nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value
        for store, key in list(_uses(model, old)):
            store[key] = new


def empty(model: nn.Module) -> None:
    """Let the storage of all parameters go."""
    memo: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and not old.is_meta:
                new = memo.setdefault(id(old), nn.Parameter(old.detach().to("meta"), requires_grad=False))
                module._parameters[name] = new


def held(model: nn.Module, name: str) -> Tensor:
    """A parameter or a buffer.

    Raises:
        CaptureError: there is none of that name.
    """
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    found = module._parameters.get(key)
    found = module._buffers.get(key) if found is None else found
    if found is None:
        raise CaptureError(f"the model has no parameter {name!r}")
    return found


def _uses(model: nn.Module, tensor: Tensor) -> Iterator[tuple[dict[str, Any], str]]:
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for key, value in store.items():
                if value is tensor:
                    yield store, key


class Halt(Exception):
    """Raised by a stand-in: what was wanted has been seen."""


class _StandIn(nn.Module):
    """In a block's place: remembers what it is called with and hands its input on, or what it is told to."""

    def __init__(self, block: nn.Module, tupled: bool) -> None:
        super().__init__()
        # What the model reads of its blocks besides calling them, such as the kind of attention.
        self.__dict__.update({n: v for n, v in vars(block).items() if not n.startswith("_")})
        self.tupled = tupled
        self.called: tuple[tuple, dict] | None = None
        self.halts = False
        self.output: Tensor | None = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.called = ((hidden, *args), kwargs)
        if self.halts:
            raise Halt
        out = hidden if self.output is None else self.output
        return (out,) if self.tupled else out


@contextmanager
def _stood_in(blocks: Blocks, tupled: bool) -> Iterator[list[_StandIn]]:
    originals = list(blocks.modules)
    for k, block in enumerate(originals):
        blocks.modules[k] = _StandIn(block, tupled)
    try:
        yield list(blocks.modules)  # type: ignore[arg-type]
    finally:
        for k, block in enumerate(originals):
            blocks.modules[k] = block


@torch.no_grad()
def calls(model: nn.Module, blocks: Blocks, inputs: Mapping[str, Any], tupled: bool = False, count: int = 0) -> list:
    """[(positional, keyword arguments)] of each block when the model is called; no block is computed.

    Each block gets what the first does for its hidden states; the other arguments are its own.

    Args:
        tupled: blocks return their output in a tuple.
        count: only so many blocks; 0: all.
    """
    with _stood_in(blocks, tupled) as stand_ins:
        stand_ins[(count or len(stand_ins)) - 1].halts = True
        try:
            model(**inputs)
        except Halt:
            return [one.called for one in stand_ins[: count or len(stand_ins)]]
    raise CaptureError(f"{type(model).__name__} does not call its blocks {blocks.path} in order; it cannot be streamed")


@torch.no_grad()
def run_tail(model: nn.Module, blocks: Blocks, inputs: Mapping[str, Any], hidden: Tensor, tupled: bool) -> Any:
    """What the model makes of ``hidden``, the last block's output."""
    with _stood_in(blocks, tupled) as stand_ins:
        stand_ins[-1].output = hidden
        return model(**inputs)


@torch.no_grad()
def call(block: nn.Module, hidden: Tensor, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """One block's output for ``hidden [batch, length, width]``."""
    out = block(hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out
