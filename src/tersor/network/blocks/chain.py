"""A large model as a list of blocks, detected by structure and loaded one at a time."""

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
    """The repeated blocks of a model.

    Args:
        path: the dotted name of the module list.
        modules: the blocks, in execution order.
    """

    path: str
    modules: nn.ModuleList

    def name(self, number: int) -> str:
        """The dotted name of a block."""
        return f"{self.path}.{number}"

    def __len__(self) -> int:
        return len(self.modules)


def find_blocks(model: nn.Module) -> Blocks:
    """Find the longest top-level list of modules of one class.

    Raises:
        CaptureError: there is no list, there are two of the same length, or an encoder and a decoder.

    >>> model = nn.Sequential(nn.Embedding(4, 2), nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]))
    >>> blocks = find_blocks(model)
    >>> blocks.path, len(blocks)
    ('1', 3)
    """
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(outer + ".") for outer, _ in lists)
        uniform = isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1
        if uniform and not nested and any(p.ndim > 1 for p in module.parameters()):
            lists.append((name, module))  # type: ignore[arg-type]
    if not lists:
        raise CaptureError(
            f"{type(model).__name__} has no nn.ModuleList of modules of one class, so there are no blocks to stream: "
            "compress the whole model, with tersor.compress and a Task"
        )
    lists.sort(key=lambda stand_in: -len(stand_in[1]))
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if len(lists) > 1 and (encoder_decoder or len(lists[0][1]) == len(lists[1][1])):
        (first, chain), (second, other) = lists[:2]
        counts = f"{len(chain)} blocks" if len(chain) == len(other) else f"{len(chain)} and {len(other)} blocks"
        raise CaptureError(
            f"{type(model).__name__} has two lists of {counts}, {first} and {second} (an encoder and a decoder?); only "
            "one chain of blocks can be streamed: compress the whole model, with tersor.compress and a Task"
        )
    return Blocks(*lists[0])


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that this thread constructs inside have parameters on the meta device; their buffers are real.

    >>> with parameters_on_meta():
    ...     layer = nn.BatchNorm1d(10**6)
    >>> layer.weight.device.type, layer.running_mean.device.type
    ('meta', 'cpu')
    """
    builder = threading.get_ident()

    def moved(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta or threading.get_ident() != builder:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    # PyTorch's annotation has no hook that returns a parameter; its documentation has.
    hook = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set parameters and buffers; all uses of a tied one get the same tensor."""
    for name, value in tensors.items():
        old = get_tensor(model, name)
        # One object for all uses, so that they remain tied.
        new = nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value
        for store, key in list(_uses(model, old)):
            store[key] = new


def empty(model: nn.Module) -> None:
    """Move all parameters to the meta device, which frees their storage."""
    memo: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and not old.is_meta:
                new = memo.setdefault(id(old), nn.Parameter(old.detach().to("meta"), requires_grad=False))
                module._parameters[name] = new


def get_tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer, by its dotted name.

    Raises:
        CaptureError: the model has no parameter or buffer of that name.
    """
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor = module._parameters.get(key)
    tensor = module._buffers.get(key) if tensor is None else tensor
    if tensor is None:
        raise CaptureError(f"the model has no parameter or buffer {name!r}")
    return tensor


def _uses(model: nn.Module, tensor: Tensor) -> Iterator[tuple[dict[str, Any], str]]:
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for key, value in store.items():
                if value is tensor:
                    yield store, key


class Halt(Exception):
    """Raised by a stand-in to stop the forward pass once the needed calls are recorded."""


class _StandIn(nn.Module):
    """Replaces a block: records its arguments, and returns its input or a given output."""

    def __init__(self, block: nn.Module, tupled: bool) -> None:
        super().__init__()
        # Attributes that the model may read from its blocks, such as the kind of attention.
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
def _replace_blocks(blocks: Blocks, tupled: bool) -> Iterator[list[_StandIn]]:
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
    """The (positional, keyword) arguments that the model calls each block with; no block is computed.

    Every block is recorded with the first block's hidden states and its own other arguments.

    Args:
        tupled: blocks return their output in a tuple.
        count: record only the first ``count`` blocks; 0 means all.
    """
    with _replace_blocks(blocks, tupled) as stand_ins:
        stand_ins[(count or len(stand_ins)) - 1].halts = True
        try:
            model(**inputs)
        except Halt:
            return [stand_in.called for stand_in in stand_ins[: count or len(stand_ins)]]
    raise CaptureError(
        f"{type(model).__name__} does not call its blocks {blocks.path} in order, so it cannot be streamed"
    )


@torch.no_grad()
def run_tail(model: nn.Module, blocks: Blocks, inputs: Mapping[str, Any], hidden: Tensor, tupled: bool) -> Any:
    """The model's output, given ``hidden`` as the last block's output."""
    with _replace_blocks(blocks, tupled) as stand_ins:
        stand_ins[-1].output = hidden
        return model(**inputs)


@torch.no_grad()
def call(block: nn.Module, hidden: Tensor, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """One block's output for ``hidden [batch, length, width]``."""
    out = block(hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out
