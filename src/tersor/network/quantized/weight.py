"""A quantized weight inside a module of the user's network."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.errors import NumericsError
from tersor.network.quantized.graph import integer_product, making_graph, remember
from tersor.network.quantized.integer import Packed, row_codes, shifted_codes, wide_codes
from tersor.network.quantized.readonly import DequantizedWeight
from tersor.numerics import QTensor, QuantSpec, unpack

Product = Callable[[Tensor], Tensor]


class QuantizedWeight(nn.Module):
    """The codes, scales and zero points of one weight, as buffers in the ``state_dict``.

    Codes of less than a byte are packed. Casts of a network (``half()``) change none of these, only the dtype that the
    weight reads as. An engine's own layout of the weight is not part of the state; it is created by ``pack``, and again
    when the codes are loaded, moved or copied.

    Args:
        qtensor: the weight.
        dtype: the dtype of the float weight.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, qtensor: QTensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec, self.shape, self.dtype = qtensor.spec, tuple(qtensor.shape), dtype
        unpacked = self.spec.format.kind == "float" or self.spec.format.bits >= 8
        self.register_buffer("codes", qtensor.codes.contiguous() if unpacked else qtensor.packed())
        self.register_buffer("scale", qtensor.scale.contiguous())
        self.register_buffer("zero_point", None if self.spec.symmetric else qtensor.zero_point.contiguous())
        self._packed: tuple[Tensor, Packed] | None = None

    @property
    def device(self) -> torch.device:
        """Where the codes are; PEFT puts an adapter there."""
        return self.codes.device

    def qtensor(self) -> QTensor:
        """The weight as a QTensor."""
        zero = torch.zeros_like(self.scale) if self.zero_point is None else self.zero_point
        codes = self.codes
        if codes.shape != self.shape:
            codes = unpack(codes, self.spec.format.bits, prod(self.shape), self.spec.format.signed).reshape(self.shape)
        # The parts were checked when they were stored; tracing cannot check them again.
        return QTensor.trusted(codes, self.scale, zero, self.spec)

    def dequantize(self) -> Tensor:
        """The float32 weight."""
        return self.qtensor().dequantize()

    def read(self, transposed: bool = False) -> Tensor:
        """The float weight for code that reads it: computed on use, and read-only."""

        def compute() -> Tensor:
            weight = self.dequantize().to(self.dtype)
            return weight.t() if transposed else weight

        if making_graph():
            return compute()
        return DequantizedWeight(self.shape[::-1] if transposed else self.shape, self.dtype, self.codes.device, compute)

    def product(self, activation: QuantSpec | None, bias: Tensor | None = None) -> Product:
        """A function ``x [rows, in] → x @ weightᵀ + bias``, float32; integer products have no gradient.

        Args:
            activation: int8 or int16, with a scale per row (or tensor) computed at run time; None keeps the input in
                float.
        """
        if activation is None:
            return self._float_product(bias)
        if making_graph():
            return self._graph_product(activation, bias)
        packed = self.pack()
        shared = activation.granularity.kind == "tensor"
        if activation.format.bits == 16:

            def wide(x: Tensor) -> Tensor:
                high, low, scale = wide_codes(x.detach(), shared)
                return _scale_sums(packed(high).mul_(256.0).add_(packed(low)), scale, bias)

            return wide

        def symmetric(x: Tensor) -> Tensor:
            codes, scale = row_codes(x.detach(), shared)
            return _scale_sums(packed(codes), scale, bias)

        def shifted(x: Tensor) -> Tensor:
            codes, scale, shift = shifted_codes(x.detach(), shared)
            # (codes + shift) · weight: the shift contributes a rank-one term.
            sums = packed(codes).addr_(shift.view(-1).expand(len(x)), packed.sums)
            return _scale_sums(sums, scale, bias)

        return symmetric if activation.symmetric else shifted

    def _float_product(self, bias: Tensor | None) -> Product:
        # ONNX Runtime has no products of bfloat16 on a CPU.
        if self.codes.dtype == torch.bfloat16 and self.scale.numel() == 1 and not torch.onnx.is_in_onnx_export():
            codes, scale = self.codes, self.scale.reshape(1, 1)
            return lambda x: _scale_sums(F.linear(x.detach().to(torch.bfloat16), codes).float(), scale, bias)
        weight = self.dequantize()
        return lambda x: F.linear(x, weight, bias)

    def _graph_product(self, activation: QuantSpec, bias: Tensor | None) -> Product:
        def product(x: Tensor) -> Tensor:
            result = integer_product(x, self._int8(), self.scale, activation)
            return result if bias is None else result + bias

        return product

    def _int8(self) -> Tensor:
        return self.codes if self.codes.dtype == torch.int8 else self.qtensor().codes.to(torch.int8)

    def pack(self) -> Packed:
        """The weight in the layout of the backend, created again if the codes or scales have changed."""
        codes, scale = self._buffers["codes"], self._buffers["scale"]
        assert codes is not None and scale is not None
        if self._packed is None or self._packed[0] is not codes or not self._packed[1].is_of(codes, scale):
            packed = Packed(self._int8(), scale, codes)
            self._packed = codes, packed
            remember(codes, packed)
        return self._packed[1]

    def _repack(self) -> None:
        if self._packed is not None:
            self._packed = None
            self.pack()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedWeight":
        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype
        super()._apply(moved, recurse)
        self._repack()
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in ("codes", "scale", "zero_point"):
            loaded, current = state_dict.get(prefix + name), getattr(self, name)
            if loaded is not None and current is not None and loaded.dtype != current.dtype:
                error_msgs.append(
                    f"{prefix}{name} is {loaded.dtype}, this layer's is {current.dtype}: the state_dict belongs to "
                    f"another recipe; quantize the model with that recipe first (this layer: {self.spec})"
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        loaded_weight = self.qtensor()
        try:
            QTensor(loaded_weight.codes, loaded_weight.scale, loaded_weight.zero_point, loaded_weight.spec)
        except NumericsError as error:
            error_msgs.append(f"{prefix.rstrip('.')}: {error}; the state_dict is damaged: save it again")
        self._repack()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": self._packed is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_packed": None})
        if state["_packed"]:
            self.pack()

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.spec}"


def _scale_sums(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    # In place, since allocating the result would cost more than the arithmetic.
    return sums.mul_(scale) if bias is None else torch.addcmul(bias, sums, scale, out=sums)
