"""A causal language model as a graph of one step: tokens and the cache in, logits and the longer cache out.

The weights are inputs of the graph, so that a model can be traced without its weights in memory.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import EngineError
from tersor.network.explain import explained
from tersor.process import quiet

# Arbitrary lengths that differ from each other and from 1.
_BATCH, _TOKENS, _PAST = 2, 3, 5


@dataclass(frozen=True)
class Trace:
    """A traced step.

    Args:
        program: its ExportedProgram; the inputs are the tokens, the positions of the wanted logits if ``chooses``, keys
            and values of each layer in turn, and the weights.
        shapes: the shapes of keys and values, [batch, heads, tokens, width]; batch and tokens are dynamic.
        weights: the weights' names in order, with their shapes; a tied weight is listed under each of its names.
        chooses: whether the model can compute the logits of the wanted positions only.
    """

    program: Any
    shapes: list[torch.Size]
    weights: dict[str, torch.Size]
    chooses: bool


def trace(model: nn.Module) -> Trace:
    """The graph of one step of a model of ``transformers``, whose parameters may be on the meta device.

    Raises:
        EngineError: the model has an encoder, or its cache holds something other than keys and values.
        CaptureError: torch.export cannot capture the model; the message gives the offending line.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise EngineError(f"{type(model).__name__} has an encoder: OpenVINO's decoder supports decoder-only models")
    chooses = "logits_to_keep" in inspect.signature(model.forward).parameters
    # One number expanded to the weight's shape: the values are not used.
    weights = {n: torch.zeros(()).expand(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    step = _Step(model, _buffers(model), chooses)
    tokens, wanted = torch.zeros(_BATCH, _TOKENS, dtype=torch.long), torch.arange(2)
    with quiet(), torch.no_grad(), _fused_attention(model):
        try:
            shapes = _cache_shapes(step, tokens, weights)
            past = [torch.zeros(_BATCH, s[1], _PAST, s[3]) for s in shapes]
            program = torch.export.export(
                step, (tokens, wanted, past, weights), dynamic_shapes=_dynamic(shapes, weights), strict=False
            )
        except EngineError:
            raise
        except Exception as error:
            raise explained(error, model) from error
    return Trace(program, shapes, {n: w.shape for n, w in weights.items()}, chooses)


def _dynamic(shapes: list[torch.Size], weights: Mapping[str, Tensor]) -> tuple[Any, ...]:
    batch, tokens, past, wanted = (torch.export.Dim(n, min=1) for n in ("batch", "tokens", "past", "wanted"))
    return ({0: batch, 1: tokens}, {0: wanted}, [{0: batch, 2: past} for _ in shapes], dict.fromkeys(weights))


class _Step(nn.Module):
    """The model as a function of all its inputs, including cache and weights."""

    def __init__(self, model: nn.Module, buffers: Mapping[str, Tensor], chooses: bool) -> None:
        super().__init__()
        # In a tuple, since the weights of a registered module would be traced too.
        self.held = (model, buffers)
        self.chooses = chooses

    def forward(
        self, tokens: Tensor, wanted: Tensor, past: list[Tensor], weights: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        model, buffers = self.held
        cache = _filled(past)
        inputs: dict[str, Any] = {"input_ids": tokens, "past_key_values": cache, "use_cache": True}
        if self.chooses:
            inputs["logits_to_keep"] = wanted
        state = {**weights, **buffers}
        output = torch.func.functional_call(model, state, (), inputs, tie_weights=False)
        return output.logits, list(_kept(cache))


def _filled(past: list[Tensor]) -> Any:
    """A cache that keeps every token; the mask excludes tokens outside a sliding window."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer: Any = DynamicLayer()  # not all versions of transformers give it a dtype
        # The layer's own initialization would concatenate an empty tensor.
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        cache.layers.append(layer)
    return cache


def _kept(cache: Any) -> Iterator[Tensor]:
    for number, layer in enumerate(cache.layers):
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if not isinstance(tensor, Tensor) or tensor.ndim != 4:
                raise EngineError(
                    f"layer {number} caches no keys and values ({type(layer).__name__}): OpenVINO's decoder does not "
                    "support such a model; use the model's own generate"
                )
            yield tensor


def _cache_shapes(step: _Step, tokens: Tensor, weights: Mapping[str, Tensor]) -> list[torch.Size]:
    """The shapes of the cache after a step from an empty cache, found with fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made = {name: mode.from_tensor(tensor) for name, tensor in weights.items()}
        kept = step(mode.from_tensor(tokens), torch.zeros(1, dtype=torch.long), [], made)[1]
    if not kept:
        raise EngineError(f"{type(step.held[0]).__name__} keeps no cache between tokens: OpenVINO's decoder needs one")
    return [k.shape for k in kept]


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Every buffer with its values; buffers on the meta device are computed by the model's own initialization."""
    found = {}
    for path, module in model.named_modules():
        own = dict(module.named_buffers(recurse=False))
        if any(b.is_meta for b in own.values()):
            module = _initialized(model, path, module)
            own = dict(module.named_buffers(recurse=False))
        found |= {f"{path}.{name}".lstrip("."): buffer for name, buffer in own.items()}
    return found


def _initialized(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """A copy of one module with its buffers computed."""
    module = copy.deepcopy(module)
    for name, buffer in module.named_buffers(recurse=False):
        # NaN marks values that the initialization does not compute.
        start = torch.full_like(buffer, float("nan") if buffer.is_floating_point() else 0, device="cpu")
        setattr(module, name, start)
    with torch.no_grad():
        model._init_weights(module)  # type: ignore[operator]
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point() and buffer.isnan().any():
            raise EngineError(f"the values of {path}.{name} are unknown: create the model with its buffers on the CPU")
    return module


@contextmanager
def _fused_attention(model: nn.Module) -> Iterator[None]:
    """Attention as one operator (SDPA) if the model supports it, which OpenVINO fuses with the cache."""
    config: Any = model.config
    before = config._attn_implementation
    try:
        if before != "sdpa":
            with suppress(ValueError):
                model.set_attn_implementation("sdpa")  # type: ignore[operator]
        yield
    finally:
        config._attn_implementation = before
