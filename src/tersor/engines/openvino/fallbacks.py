"""The rules by which OpenVINO's CPU plugin computes an operator in float although its input is quantized."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from tersor.engines.targets import cpuinfo, isa_flags
from tersor.words import said

_GROUPED = "GroupConvolutionBackpropData"
_TRANSPOSED = ("ConvolutionBackpropData", _GROUPED)


@dataclass(frozen=True)
class Rule:
    """Operators without an integer kernel.

    Args:
        kinds: types of operators of an openvino.Model.
        applies: whether one of them has no such kernel.
        text: the rule, as the end of a sentence.
    """

    kinds: tuple[str, ...]
    applies: Callable[[Any], bool]
    text: str


def _strides(op: Any) -> list[int]:
    return [int(n) for n in op.get_attributes()["strides"]]


def _kernel(op: Any) -> list[int]:
    return [int(n) for n in op.input_value(1).get_shape()][-len(_strides(op)) :]


def _ragged(op: Any) -> bool:
    """Whether a grouped, but not depthwise, transposed convolution has channels that fill no vector."""
    groups, *rest = (int(n) for n in op.input_value(1).get_shape())
    channels = [groups * n for n in rest[:2]]
    vector = 16 if "avx512f" in isa_flags(cpuinfo()) else 8
    return prod(rest[:2]) > 1 and any(n % vector for n in channels)


# In Deconvolution::canBeExecutedInInt8 of OpenVINO's CPU plugin.
RULES = (
    Rule(_TRANSPOSED[:1], lambda op: _strides(op)[-1] > 3, said("since the stride of its last dimension is above 3")),
    Rule(
        _TRANSPOSED,
        lambda op: any(k < s for k, s in zip(_kernel(op), _strides(op), strict=True)),
        said("since its kernel is smaller than its stride"),
    ),
    Rule((_GROUPED,), _ragged, said(
        "since it is grouped and its channels are no multiple of 16 (of 8 without AVX-512)",
    )),
)


def reason(operators: Iterable[Any]) -> str | None:
    """The rule that explains why one of the merged operators is computed in float, or None."""
    for op in operators:
        kind = op.get_type_name()
        for rule in RULES:
            if kind in rule.kinds and rule.applies(op):
                return said("OpenVINO: {op} in FP32, {rule}", op=kind, rule=rule.text)
    return None
