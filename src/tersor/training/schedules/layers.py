"""One layer, or one block, after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from tersor.errors import RecipeError
from tersor.tables import nearest
from tersor.training.student import quantizers_in

Groups = dict[str, list[Any]]


@dataclass(frozen=True)
class Layers:
    """Layers are quantized one after the other, at equal intervals; those that are not yet pass their values.

    A layer is a weight with the values that are quantized between the weight before and itself: its inputs. Values
    behind the last weight are part of the last layer. Where no weight is quantized, each value is one for itself.

    Args:
        order: from the ``input`` or the ``output`` of the network, or by ``sensitivity``, the least sensitive first.
        by: ``layer``, or ``block``: all layers whose names agree up to their first number, as in ``layer1.0.conv2``.
        end: the share of all steps after which everything is quantized.
        sensitivities: of each layer or block by name, for that order; None: the sum over its values of the power of the
            quantization error over that of the value, as calibration measured it.

    Zhou et al., arXiv 1702.03044, quantize one part after the other; Dong et al., arXiv 1905.03696, order blocks by
    sensitivity.
    """

    order: Literal["input", "output", "sensitivity"] = "input"
    by: Literal["layer", "block"] = "layer"
    end: Annotated[float, Gt(0), Le(1)] = 0.5
    sensitivities: dict[str, Annotated[float, Ge(0)]] | None = None

    def __post_init__(self) -> None:
        if self.sensitivities is not None and self.order != "sensitivity":
            raise RecipeError(f"sensitivities are given, but the order is from the {self.order}: `order: sensitivity`")

    def __call__(self, student: nn.Module, progress: float) -> None:
        groups = layers(student) if self.by == "layer" else blocks(student)
        names = list(groups)
        if self.order == "output":
            names.reverse()
        elif self.order == "sensitivity" and progress < self.end:
            found = errors(groups) if self.sensitivities is None else checked(self.sensitivities, groups)
            names.sort(key=found.__getitem__)
        for k, name in enumerate(names):
            reached = progress >= self.end or progress >= k * self.end / len(names)
            for quantizer in groups[name]:
                quantizer.share, quantizer.bits = float(reached), None


def layers(student: nn.Module) -> Groups:
    """The quantizers of each layer, by its name, from the input to the output."""
    quantizers = quantizers_in(student)
    if not any(quantizer.is_weight for quantizer in quantizers):
        return {quantizer.name: [quantizer] for quantizer in quantizers}
    found, waiting, last = Groups(), list[Any](), ""
    for quantizer in quantizers:
        waiting.append(quantizer)
        if quantizer.is_weight:
            last = quantizer.name
            found.setdefault(last, []).extend(waiting)
            waiting = []
    found[last].extend(waiting)
    return found


def blocks(student: nn.Module) -> Groups:
    """The quantizers of each block, by its name."""
    found = Groups()
    for name, quantizers in layers(student).items():
        found.setdefault(block_of(name), []).extend(quantizers)
    return found


def block_of(name: str) -> str:
    """The name up to its first component that is, or ends in, a number of its own.

    >>> block_of("layer1.0.conv2"), block_of("encoder.layers.encoder_layer_3.mlp.0"), block_of("conv1")
    ('layer1.0', 'encoder.layers.encoder_layer_3', 'conv1')
    """
    parts = name.split(".")
    numbered = (k for k, part in enumerate(parts) if part.rpartition("_")[2].isdigit())
    return ".".join(parts[: next(numbered, len(parts)) + 1])


def errors(groups: Groups) -> dict[str, float]:
    """The sum of the quantizers' errors for each group."""
    for quantizers in groups.values():
        if unknown := next((q.name for q in quantizers if q.error is None), None):
            raise RecipeError(f"{unknown}: calibration measured no error: give `sensitivities` of the layers")
    # One tensor of all of them: one transfer from an accelerator.
    flat = iter(torch.stack([q.error for quantizers in groups.values() for q in quantizers]).tolist())
    return {name: sum(next(flat) for _ in quantizers) for name, quantizers in groups.items()}


def checked(given: Mapping[str, float], groups: Groups) -> Mapping[str, float]:
    """The given sensitivities; raises RecipeError for an unknown or a missing name."""
    for name in given:
        if name not in groups:
            raise RecipeError(f"sensitivities of {name}: no such layer{nearest(name, groups)}")
    if missing := [name for name in groups if name not in given]:
        raise RecipeError(f"sensitivities are missing for {', '.join(missing)}")
    return given
