"""A large model as a list of blocks, detected by structure and loaded one at a time."""

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_parameter_registration_hook

from tersor.errors import CaptureError
from tersor.process import quiet


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
    """Find the list of modules that ``input_ids`` reach; among several, one with modules of one class, and the longest.

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
        if isinstance(module, nn.ModuleList) and not nested and any(p.ndim > 1 for p in module.parameters()):
            lists.append((name, module))
    if not lists:
        raise CaptureError(
            f"{type(model).__name__} has no nn.ModuleList of modules of one class, so there are no blocks to stream: "
            "compress the whole model, with tersor.compress and a Task"
        )
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if len(lists) > 1 and not encoder_decoder:
        names = [name for name, _ in lists]
        called = reached_by_tokens(model, names) or _beside_embedding(model, names)
        lists = [pair for pair in lists if pair[0] in called]
    # Lists of one class first, then those of several, such as layers with two kinds of attention.
    lists = [pair for pair in lists if len({type(m) for m in pair[1]}) == 1] or lists
    lists.sort(key=lambda pair: -len(pair[1]))
    if len(lists) > 1 and (encoder_decoder or len(lists[0][1]) == len(lists[1][1])):
        (first, chain), (second, other) = lists[:2]
        counts = f"{len(chain)} blocks" if len(chain) == len(other) else f"{len(chain)} and {len(other)} blocks"
        raise CaptureError(
            f"{type(model).__name__} has two lists of {counts}, {first} and {second} (an encoder and a decoder?); only "
            "one chain of blocks can be streamed: compress the whole model, with tersor.compress and a Task"
        )
    return Blocks(*lists[0])


def reached_by_tokens(model: nn.Module, lists: Sequence[str]) -> set[str]:
    """The names of the module lists from which the model calls a module when given only ``input_ids``.

    The model runs on fake tensors: nothing is computed or allocated. If the model fails, its calls until then count.
    """
    model, called = copy.deepcopy(model), set[str]()

    def note(name: str, *_: Any) -> None:
        called.add(name)

    for name in lists:
        for module in cast(nn.ModuleList, model.get_submodule(name)):
            module.register_forward_pre_hook(partial(note, name))
    with quiet(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), suppress(Exception):
        values = {name: torch.empty(p.shape, dtype=p.dtype) for name, p in model.named_parameters()}
        torch.func.functional_call(model, values, (), {"input_ids": torch.ones(1, 4, dtype=torch.int64)})
    return called


def _beside_embedding(model: nn.Module, lists: Sequence[str]) -> set[str]:
    """The lists nearest to the token embedding, which is the largest one; all lists if there is no embedding."""
    embeddings = [(m.num_embeddings, n) for n, m in model.named_modules() if isinstance(m, nn.Embedding)]
    path = max(embeddings, default=(0, ""))[1].split(".")
    shared = {
        name: len(list(takewhile(lambda pair: pair[0] == pair[1], zip(path, name.split("."), strict=False))))
        for name in lists
    }
    return {name for name in lists if shared[name] == max(shared.values())}


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that this thread constructs inside the block have parameters on the meta device, and real buffers.

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


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move all buffers to a device; parameters stay where they are.

    >>> layer = nn.BatchNorm1d(2)
    >>> move_buffers(layer, torch.device("meta"))
    >>> layer.weight.device.type, layer.running_mean.device.type
    ('cpu', 'meta')
    """
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = memo.setdefault(id(old), old.to(device))


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
