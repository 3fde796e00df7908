"""The quantized module that replaces a layer, and the solution of its weights."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tersor.engines.recurrent import recurrent_kernel
from tersor.network.quantized import (
    QuantizedCell,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedRecurrent,
    QuantizedWeight,
    WeightOnly,
)
from tersor.network.swap import CELLS, RECURRENT, WeightedModule
from tersor.network.trained import plain
from tersor.numerics import QTensor, QuantSpec
from tersor.pipeline.modules.plan import WEIGHT, ModulePlan
from tersor.solvers import LayerProblem, ask

# Elements of a weight quantized at once.
_CHUNK = 2**18


def replacement(
    module_plan: ModulePlan, seed: int, memory: dict[tuple[int, str, bool], QuantizedWeight]
) -> nn.Module:
    """The quantized module of a plan: its codes are solved, or those that it was trained with.

    Args:
        memory: the weights so far: tied ones share their codes.
    """
    weighted, activation = module_plan.weighted, module_plan.activation
    module: Any = weighted.module

    def solved(name: str) -> QuantizedWeight:
        tensor, trained = module.get_parameter(name), weighted.quantizers.get(name)
        key = (id(tensor), str(module_plan.weights if trained is None else id(trained)), weighted.transposed)
        if key not in memory:
            if trained is None:
                qtensor = solve(module_plan, name, seed)
            else:
                qtensor = trained.qtensor(by_outputs(weighted, name).contiguous())
            memory[key] = QuantizedWeight(qtensor, tensor.dtype)
        return memory[key]

    if weighted.op == "linear":
        return QuantizedLinear(solved("weight"), module.bias, activation, weighted.transposed)
    if weighted.op == "embedding":
        return QuantizedEmbedding(module, solved("weight"))
    if weighted.op in RECURRENT:
        parts = list(_directions(module))
        weights = [[solved(n) for n in names] for names, _ in parts]
        return QuantizedRecurrent(module, weights, [biases for _, biases in parts], activation, recurrent_kernel)
    if weighted.op in CELLS:
        mode = {"lstm_cell": "LSTM", "gru_cell": "GRU"}.get(weighted.op) or f"RNN_{module.nonlinearity.upper()}"
        biases = [module.bias_ih, module.bias_hh] if module.bias else []
        return QuantizedCell(mode, module, [solved("weight_ih"), solved("weight_hh")], biases, activation)
    return WeightOnly(plain(module, weighted.op) if weighted.quantizers else module, solved("weight"))


def _directions(module: Any) -> Iterator[tuple[list[str], list[Tensor]]]:
    """The weight names and the biases of every layer and direction."""
    for k in range(module.num_layers):
        for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            tail = f"l{k}{suffix}"
            names = [f"weight_{kind}_{tail}" for kind in ("ih", "hh") + (("hr",) if module.proj_size else ())]
            biases = [getattr(module, f"bias_{kind}_{tail}") for kind in ("ih", "hh")] if module.bias else []
            yield names, biases


def solve(module_plan: ModulePlan, name: str, seed: int) -> QTensor:
    """A weight of a module, named as its parameter, as its plan asks for it."""
    wanted = module_plan.weights
    assert wanted is not None
    weight, spec, choice = by_outputs(module_plan.weighted, name), wanted.spec(WEIGHT), wanted.choice(seed)
    title, chunks = f"{module_plan.name}.{name}", _chunks(weight, spec) if choice.by_row else [weight]
    answers = (ask(LayerProblem(title, rows.float().contiguous(), spec), choice) for rows in chunks)
    parts = [a.qtensor for a in answers if a.qtensor is not None]
    if len(parts) == 1:
        return parts[0]
    codes, scale, zero_point = (torch.cat([getattr(p, f) for p in parts]) for f in ("codes", "scale", "zero_point"))
    return QTensor(codes, scale, zero_point, spec)


def by_outputs(weighted: WeightedModule, name: str) -> Tensor:
    """A weight with its outputs first."""
    weight = weighted.module.get_parameter(name).detach()
    return weight.t() if weighted.transposed else weight


def _chunks(weight: Tensor, spec: QuantSpec) -> Sequence[Tensor]:
    """Chunks of rows if each row has its own scales, so that intermediates stay in the cache; else the whole weight."""
    alone = spec.granularity.scale_shape(weight.shape)[0] == len(weight) and spec.rounding == "nearest"
    return weight.split(max(1, _CHUNK * len(weight) // weight.numel())) if alone and weight.numel() else [weight]
