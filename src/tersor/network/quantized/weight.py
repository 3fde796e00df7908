"""A weight held as codes inside a module of the user's network."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.errors import NumericsError
from tersor.network.quantized.integer import Packed, row_codes, shifted_codes, wide_codes
from tersor.numerics import QTensor, QuantSpec, unpack

Product = Callable[[Tensor], Tensor]


class QuantizedWeight(nn.Module):
    """The codes, scales and zero points of one weight, as buffers that ``state_dict`` holds.

    Codes of less than a byte are packed. What an engine makes of them (a layout of its own) is made when it
    is first asked for, and is no part of the state.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, qtensor: QTensor) -> None:
        super().__init__()
        self.spec, self.shape = qtensor.spec, tuple(qtensor.shape)
        whole = self.spec.format.kind == "float" or self.spec.format.bits >= 8
        self.register_buffer("codes", qtensor.codes.contiguous() if whole else qtensor.packed())
        self.register_buffer("scale", qtensor.scale.contiguous())
        self.register_buffer("zero_point", None if self.spec.symmetric else qtensor.zero_point.contiguous())
        self._packed: Packed | None = None

    def qtensor(self) -> QTensor:
        """The same as a QTensor."""
        zero = torch.zeros_like(self.scale) if self.zero_point is None else self.zero_point
        codes = self.codes
        if codes.shape != self.shape:
            codes = unpack(codes, self.spec.format.bits, prod(self.shape), self.spec.format.signed).reshape(self.shape)
        # The parts were checked when they were taken in; a trace cannot look at them again.
        return QTensor.trusted(codes, self.scale, zero, self.spec)

    def dequantize(self) -> Tensor:
        """The float32 weight that the codes stand for."""
        return self.qtensor().dequantize()

    def product(self, activation: QuantSpec | None, bias: Tensor | None = None) -> Product:
        """``x [rows, in] → x @ weightᵀ + bias``, float32; a product in integers has no gradient.

        Args:
            activation: int8 or int16, each row (or the tensor) with a scale of its own taken at run time;
                None leaves the input in float.
        """
        if activation is None:
            return self._float_product(bias)
        packed = self._pack()
        shared = activation.granularity.kind == "tensor"
        if activation.format.bits == 16:

            def wide(x: Tensor) -> Tensor:
                high, low, scale = wide_codes(x.detach(), shared)
                return _scaled(packed(high).mul_(256.0).add_(packed(low)), scale, bias)

            return wide

        def symmetric(x: Tensor) -> Tensor:
            codes, scale = row_codes(x.detach(), shared)
            return _scaled(packed(codes), scale, bias)

        def shifted(x: Tensor) -> Tensor:
            codes, scale, shift = shifted_codes(x.detach(), shared)
            # (codes + shift) · weight: the shifts' part is of rank one.
            sums = packed(codes).addr_(shift.view(-1).expand(len(x)), packed.sums)
            return _scaled(sums, scale, bias)

        return symmetric if activation.symmetric else shifted

    def _float_product(self, bias: Tensor | None) -> Product:
        if self.codes.dtype == torch.bfloat16 and self.scale.numel() == 1:
            codes, scale = self.codes, self.scale.reshape(1, 1)
            return lambda x: _scaled(F.linear(x.detach().to(torch.bfloat16), codes).float(), scale, bias)
        weight = self.dequantize()
        return lambda x: F.linear(x, weight, bias)

    def _pack(self) -> Packed:
        if self._packed is None or self._packed.scale.device != self.codes.device:
            q = self.qtensor()
            self._packed = Packed(q.codes.to(torch.int8), q.scale.reshape(-1).expand(self.shape[0]))
        return self._packed

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        self._packed = None
        errors: list[str] = args[-1]
        for name in ("codes", "scale", "zero_point"):
            given, own = state.get(prefix + name), getattr(self, name)
            if given is not None and own is not None and given.dtype != own.dtype:
                errors.append(
                    f"{prefix}{name} is {given.dtype}, this layer's {own.dtype}: the state_dict belongs to another "
                    f"recipe; quantize the model with that one first (this layer: {self.spec})"
                )
        super()._load_from_state_dict(state, prefix, *args)
        held = self.qtensor()
        try:
            QTensor(held.codes, held.scale, held.zero_point, held.spec)
        except NumericsError as error:
            errors.append(f"{prefix.rstrip('.')}: {error}; the state_dict is damaged: save it again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.spec}"


def _scaled(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    # In place: fresh memory for the result would cost more than the arithmetic.
    return sums.mul_(scale) if bias is None else torch.addcmul(bias, sums, scale, out=sums)
