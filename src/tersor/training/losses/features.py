"""Records what named layers of a network return while it runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tersor.errors import RecipeError, TaskError
from tersor.tables import nearest
from tersor.training.losses.base import floats


class Features:
    """What the layers of those names return, recorded by hooks while this is entered.

    It can be entered any number of times; leaving it, also through an exception, removes the hooks. A copy of the
    network that is made meanwhile, by deepcopy or pickle, records nothing. Of a layer that is called several times in
    one run, the last call counts.

    Args:
        module: a network; a DistributedDataParallel or compiled module is looked through. Compile it after entering,
            or the compiled code has no hooks.
        names: of its submodules; of a trainable graph, of its operators or of modules of the model that was captured.

    Raises:
        RecipeError: a name that the network has not, with the nearest one.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with Features(net, ["0"]) as features:
    ...     out = net(torch.ones(1, 2))
    ...     recorded = features.take()
    >>> recorded["0"].shape, len(net[0]._forward_hooks)
    (torch.Size([1, 3]), 0)
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self.layers = {name: layer(module, name) for name in names}
        self._found: dict[str, Any] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Features":
        if not self._handles:
            hooks = ((m, _Hook(self._found, name)) for name, m in self.layers.items())
            self._handles = [m.register_forward_hook(hook) for m, hook in hooks]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._found.clear()

    def take(self) -> dict[str, Any]:
        """What each layer returned in the last run, by its name; it is forgotten here.

        Raises:
            TaskError: naming the layers that were not called.
        """
        missing = [name for name in self.layers if name not in self._found]
        found = {name: self._found[name] for name in self.layers if name in self._found}
        self._found.clear()
        if missing:
            run_it = "the network did not call them: run it first, and compile it after entering, not before"
            why = run_it if self._handles else "enter `with` before the network runs"
            raise TaskError(f"no features of {', '.join(missing)} were recorded: {why}")
        return found


class _Hook:
    """Stores a layer's result; a copy of it, made with its layer, stores nothing."""

    def __init__(self, found: dict[str, Any] | None = None, name: str = "") -> None:
        self.found, self.name = found, name

    def __call__(self, module: nn.Module, args: Any, result: Any) -> None:
        if self.found is not None:
            self.found[self.name] = result

    def __reduce__(self) -> tuple[Callable[[], "_Hook"], tuple[()]]:
        return _Hook, ()


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside a DataParallel, DistributedDataParallel or compiled module."""
    while True:
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def layer(module: nn.Module, name: str) -> nn.Module:
    """The submodule of that name; of a trainable graph, the tap behind the operator, or the module's last operator.

    Raises:
        RecipeError: with the nearest name.
    """
    module, names = unwrapped(module), layer_names(module)
    if name not in names:
        raise RecipeError(f"the {type(module).__name__} has no layer {name!r}{nearest(name, names)}")
    tap: Any = getattr(module, "tap", None)
    return module.get_submodule(name) if tap is None else tap(names[name])


def layer_names(module: nn.Module) -> dict[str, str]:
    """The names of all layers: a module's own, or, each with an operator's title, what can be tapped in a graph.

    A trainable graph has ``tap(title)`` and ``taps()``, the shapes that its operators return, by title, in their order.
    """
    module = unwrapped(module)
    if not hasattr(module, "tap"):
        return {name: name for name, _ in module.named_modules() if name}
    found: dict[str, str] = {}
    titles = list(module.taps())  # type: ignore[operator]
    for title in titles:
        parts = title.split(".")
        for path in (".".join(parts[:k]) for k in range(1, len(parts))):
            found.pop(path, None)  # modules end with their last operator
            found[path] = title
        found[title] = title
    return found | {title: title for title in titles}


def attention_of(result: Any) -> Tensor | None:
    """The maps of attention that a layer returned: its first floating tensor of four dimensions."""
    return next((t for t in floats(result) if t.ndim == 4), None)


def feature_of(result: Any) -> Tensor | None:
    """The first floating tensor that a layer returned, with a batch and a width."""
    return next((t for t in floats(result) if t.ndim > 1), None)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """The module in eval mode and without gradients; afterwards each submodule is in its own mode again."""
    training = [m for m in module.modules() if m.training]
    try:
        for m in training:
            m.training = False
        with torch.no_grad():
            yield module
    finally:
        for m in training:
            m.training = True


class Arguments(NamedTuple):
    """Those of a call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def run(module: nn.Module, inputs: Any) -> Any:
    """A call with a tuple of arguments, a mapping of keyword arguments, or both."""
    if isinstance(inputs, Arguments):
        return module(*inputs.args, **inputs.kwargs)
    return module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
