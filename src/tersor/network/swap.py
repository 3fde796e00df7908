"""The modules of an eager model that hold weights, and the replacement of modules."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from tersor.errors import TaskError
from tersor.network.quantized import Quantized, QuantizedWeight
from tersor.network.trained import quantizers_of
from tersor.training.quantizers import Quantizer
from tersor.words import said

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
# Parents with a fused path that reads their layers' weights instead of calling them, and how to switch it off.
_FUSED: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}


@dataclass(frozen=True, eq=False)
class WeightedModule:
    """A module with its own weights (parameters with two or more dimensions).

    Args:
        name: its dotted name, the first one if it is used under several.
        op: its operator type, as in rules; for an unknown class, its name in lower case.
        weights: the names of the parameters.
        skip_reason: why it cannot be quantized, or None.
        transposed: whether its weight is ``[in, out]`` (GPT-2's Conv1D).
    """

    name: str
    module: nn.Module
    op: str
    weights: tuple[str, ...]
    skip_reason: str | None = None
    transposed: bool = False

    def tensors(self) -> list[Tensor]:
        """The weight tensors."""
        return [self.module.get_parameter(n) for n in self.weights]

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """By the names of its weights, the quantizers that they train with; empty unless it is a training layer."""
        return quantizers_of(self.module)


def weighted_modules(model: nn.Module) -> list[WeightedModule]:
    """Every module that holds weights, in the model's order, each once even if used several times.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    >>> [(m.name, m.op) for m in weighted_modules(model)]
    [('0', 'embedding'), ('1', 'linear')]
    """
    modules, nested = [], set[int]()
    for name, module in model.named_modules():
        if id(module) in nested or isinstance(module, Quantizer):
            continue
        if isinstance(module, QuantizedWeight):
            modules.append(WeightedModule(name, module, "quantized", (), said("it is already quantized")))
            continue
        if parametrize.is_parametrized(module):
            nested.update(id(m) for m in module.modules())
            modules.append(WeightedModule(name, module, _op(module), (), said(
                "its weight is computed by a parametrization",
            )))
            continue
        weights = tuple(n for n, p in module.named_parameters(recurse=False) if is_lazy(p) or p.ndim >= 2)
        if weights:
            modules.append(_weighted(name, module, weights))
        if isinstance(module, nn.MultiheadAttention):
            nested.add(id(module.out_proj))
            reason = said("nn.MultiheadAttention reads this weight itself, without calling the layer")
            inner = f"{name}.out_proj".lstrip(".")
            modules.append(WeightedModule(inner, module.out_proj, "linear", ("weight",), reason))
    return modules


def _op(module: nn.Module) -> str:
    return next((op for op, kinds in _PLAIN.items() if isinstance(module, kinds)), type(module).__name__.lower())


def _weighted(name: str, module: nn.Module, weights: tuple[str, ...]) -> WeightedModule:
    kind, op = type(module), _op(module)
    if quantizers_of(module):  # a training layer counts as what it trains
        kind = _PLAIN[op][0] if op in _PLAIN else next(k for k in kind.__mro__ if k.__name__ == "Conv1D")
    if kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."):
        return WeightedModule(name, module, "linear", weights, _hooked(module), transposed=True)
    if op not in _PLAIN:
        return WeightedModule(name, module, op, weights, said(
            "Tersor does not know layers of class {kind}",
            kind=kind.__name__,
        ))
    if kind.forward is not _PLAIN[op][0].forward:
        return WeightedModule(name, module, op, weights, said(
            "its class {kind} has its own forward",
            kind=kind.__name__,
        ))
    if op == "embedding" and (module.max_norm is not None or module.sparse):
        return WeightedModule(
            name, module, op, weights, said("an embedding with max_norm or sparse gradients changes its weight")
        )
    if any(is_lazy(module.get_parameter(n)) for n in weights):
        return WeightedModule(name, module, op, (), said(
            "it has no weight before its first call: call the model once",
        ))
    if not op.endswith("_cell") and op not in RECURRENT and "weight" not in weights:
        reason = said(
            "its weight is computed by a hook (weight_norm, pruning): remove that first, as by remove_weight_norm",
        )
        return WeightedModule(name, module, op, weights, reason)
    return WeightedModule(name, module, op, weights, _hooked(module))


def _hooked(module: nn.Module) -> str | None:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return said("it has hooks, which would be lost: remove them first") if any(hooks) else None


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Copy the model, as the same class, with modules replaced wherever they are used.

    Replaced modules are not copied, so the copy takes no more memory than the remaining ones. Remaining tied weights
    stay tied in the copy.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> replace_modules(model, {model[0]: nn.Identity()})
    Sequential(
      (0): Identity()
      (1): ReLU()
    )
    """
    memo: dict[int, Any] = {id(old): new for old, new in replacements.items()}
    with _CopyOfResults():
        changed = copy.deepcopy(model, memo)
    call_layers(changed)
    return changed


def call_layers(model: nn.Module) -> None:
    """Switch off the fused paths of modules with quantized or training layers, which would not call these."""
    for module in model.modules():
        for kind, (switch, off) in _FUSED.items():
            if isinstance(module, kind) and any(isinstance(m, (Quantized, Quantizer)) for m in module.modules()):
                setattr(module, switch, off)


def check_copy(model: nn.Module) -> None:
    """Raise a TaskError, naming the attribute, if ``replace_modules`` cannot copy this model; copies no weight."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    try:
        with _CopyOfResults():
            copy.deepcopy(model, shared)
    except Exception as error:
        raise TaskError(
            f"this {type(model).__name__} cannot be copied ({_culprit(model)}{type(error).__name__}: {error}): remove "
            "what holds it, or set it on the result instead"
        ) from error


class _CopyOfResults(TorchFunctionMode):
    """While this is active, results that a model keeps (the weight of weight_norm, a last state) are copied by value.

    PyTorch copies no tensor with a history.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **kwargs or {})


def _culprit(model: nn.Module) -> str:
    """The attribute that cannot be copied, by name."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                with _CopyOfResults():
                    copy.deepcopy(value)
            except Exception:
                return f"{name}.{key}".lstrip(".") + ", "
    return ""
