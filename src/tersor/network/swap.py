"""The module host: which modules of an eager model hold weights, and the model with some of them exchanged."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tersor.network.quantized import QuantizedWeight

_PLAIN: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "embedding": (nn.Embedding,),
    "lstm": (nn.LSTM,),
    "gru": (nn.GRU,),
    "rnn": (nn.RNN,),
    "lstm_cell": (nn.LSTMCell,),
    "gru_cell": (nn.GRUCell,),
    "rnn_cell": (nn.RNNCell,),
    "conv1d": (nn.Conv1d,),
    "conv2d": (nn.Conv2d,),
    "conv3d": (nn.Conv3d,),
    "conv_transpose1d": (nn.ConvTranspose1d,),
    "conv_transpose2d": (nn.ConvTranspose2d,),
    "conv_transpose3d": (nn.ConvTranspose3d,),
}
RECURRENT = frozenset({"lstm", "gru", "rnn"})
CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_cell"})
CONVOLUTIONS = frozenset(name for name in _PLAIN if name.startswith("conv"))


@dataclass(frozen=True, eq=False)
class WeightedModule:
    """A module with weights of its own (parameters of two dimensions or more).

    Args:
        name: its dotted name, the first where it is used under several.
        op: its operator type, as rules name it; of an unknown class its name in lower case.
        weights: the parameters' names.
        skip_reason: why it must stay as it is, or None.
        transposed: its weight is ``[in, out]`` (GPT-2's Conv1D).
    """

    name: str
    module: nn.Module
    op: str
    weights: tuple[str, ...]
    skip_reason: str | None = None
    transposed: bool = False

    def tensors(self) -> list[Tensor]:
        """The weights themselves."""
        return [self.module.get_parameter(n) for n in self.weights]


def weighted_modules(model: nn.Module) -> list[WeightedModule]:
    """Every module that holds weights, in the model's order; each once, however often it is used.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    >>> [(h.name, h.op) for h in weighted_modules(model)]
    [('0', 'embedding'), ('1', 'linear')]
    """
    found, inside = [], set[int]()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, QuantizedWeight):
            found.append(WeightedModule(name, module, "quantized", (), "it is quantized already"))
            continue
        if parametrize.is_parametrized(module):
            inside.update(id(m) for m in module.modules())
            found.append(WeightedModule(name, module, _op(module), (), "its weight is computed by a parametrization"))
            continue
        weights = tuple(n for n, p in module.named_parameters(recurse=False) if p.ndim >= 2)
        if weights:
            found.append(_weighted(name, module, weights))
        if isinstance(module, nn.MultiheadAttention):
            inside.add(id(module.out_proj))
            reason = "nn.MultiheadAttention reads this weight itself, without calling the layer"
            found.append(WeightedModule(f"{name}.out_proj".lstrip("."), module.out_proj, "linear", ("weight",), reason))
    return found


def _op(module: nn.Module) -> str:
    return next((op for op, kinds in _PLAIN.items() if isinstance(module, kinds)), type(module).__name__.lower())


def _weighted(name: str, module: nn.Module, weights: tuple[str, ...]) -> WeightedModule:
    kind, op = type(module), _op(module)
    if kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."):
        return WeightedModule(name, module, "linear", weights, _hooked(module), transposed=True)
    if op not in _PLAIN:
        return WeightedModule(name, module, op, weights, f"Tersor knows no layer of class {kind.__name__}")
    if kind.forward is not _PLAIN[op][0].forward:
        return WeightedModule(name, module, op, weights, f"its class {kind.__name__} has a forward of its own")
    if op == "embedding" and (module.max_norm is not None or module.sparse):
        return WeightedModule(
            name, module, op, weights, "an embedding with max_norm or sparse gradients changes its weight"
        )
    return WeightedModule(name, module, op, weights, _hooked(module))


def _hooked(module: nn.Module) -> str | None:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return "it has hooks, which would be lost; remove them first" if any(hooks) else None


def exchanged(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A copy of the model, of the same class, with modules exchanged wherever they are used.

    What is replaced is not copied, so the copy costs no more memory than what is left. Tied weights that stay
    are tied in the copy too.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> exchanged(model, {model[0]: nn.Identity()})
    Sequential(
      (0): Identity()
      (1): ReLU()
    )
    """
    memo = {id(old): new for old, new in replacements.items()}
    return copy.deepcopy(model, memo)  # type: ignore[arg-type]
