"""Hessians of a block's weights, accumulated in batches, and the error of the layers before them."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tersor.errors import CalibrationError, CaptureError
from tersor.observers.gram import Gram
from tersor.pipeline.folder.plan import WeightPlan

Key = tuple[str, int | None]


class Hessians:
    """Gram matrices of the inputs of weights; weights that read the same tensor share one.

    If the original model's inputs x₀ are known too, the error that earlier layers introduced is accumulated as well.
    For a layer whose output is added to the residual stream, the error of the sum counts, with each token weighted by
    the inverse magnitude of the sum, since the next norm divides by it.

    Args:
        added: the names of layers whose output is added to the residual stream.
        routed: the names of experts' weights, which may receive other tokens in the original model.
    """

    def __init__(self, added: Iterable[str] = (), routed: Iterable[str] = ()) -> None:
        self.added, self._routed = set(added), frozenset(routed)
        self._owner: dict[Key, Key] = {}
        self._grams: dict[Key, Gram] = {}
        self._input_error: dict[Key, Gram] = {}
        self._residual_error: dict[str, Gram] = {}
        self.next_batch(None)

    def next_batch(self, token_mask: Tensor | None) -> None:
        """Start a new batch; ``token_mask`` is bool [windows, length], True for real positions."""
        self._token_mask = token_mask
        self._batch: dict[int, tuple[Tensor, Key]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._original: dict[str, Tensor] = {}
        self._stream: dict[str, Tensor] = {}

    def on_original_product(self, name: str, index: int | None, transposed: bool, x: Tensor) -> None:
        """Record a weight's input in the original model, except for experts."""
        if index is None and name not in self._routed:
            self._original[name] = x

    def on_original_sum(self, name: str, product: Tensor, stream: Tensor) -> None:
        """Record what the layer's output is added to in the original model."""
        self._stream[name] = stream.clone()

    def on_product(self, name: str, index: int | None, transposed: bool, x: Tensor) -> None:
        """Accumulate a product of the weight with ``x [..., in]``."""
        key = (name, index)
        self._inputs[name] = x
        _, first = self._batch.setdefault(id(x), (x, key))
        if self._owner.setdefault(key, first) != first:
            raise CaptureError(
                f"{name} sometimes shares the input of {first[0]} and sometimes not: it cannot be calibrated"
            )
        if first == key and name not in self.added:
            self._accumulate(key, x, None)

    def on_sum(self, name: str, product: Tensor, stream: Tensor) -> None:
        """Accumulate a sum of the layer's output with the residual stream."""
        if name not in self.added:  # first occurrence
            self.added.add(name)
            return
        x = self._inputs[name]
        if x.shape[:-1] != stream.shape[:-1]:
            self._accumulate((name, None), x, None)
            return
        size = (stream.float() + product.reshape(stream.shape).float()).square().mean(-1, keepdim=True)
        scale = size.clamp(min=1e-12).rsqrt()
        self._accumulate((name, None), x, scale)
        if name in self._stream:
            residual_error, scaled = ((t.float() * scale).to(x.dtype) for t in (self._stream[name] - stream, x))
            self._merge(self._residual_error, name, Gram.between(_rows(residual_error), _rows(scaled), self._mask(x)))

    def _accumulate(self, key: Key, x: Tensor, scale: Tensor | None) -> None:
        scaled = x if scale is None else (x.float() * scale).to(x.dtype)
        try:
            self._merge(self._grams, key, Gram.of(_rows(scaled)[None], self._mask(x)))
        except CalibrationError as error:
            raise CalibrationError(
                f"layer {key[0]}: {error}; an earlier layer overflows: is the checkpoint complete? If so, keep this "
                "layer in float with a rule"
            ) from error
        if key[1] is None and (original := self._original.get(key[0])) is not None:
            input_error = original - x if scale is None else ((original - x).float() * scale).to(x.dtype)
            self._merge(self._input_error, key, Gram.between(_rows(input_error), _rows(scaled), self._mask(x)))

    @staticmethod
    def _merge(into: dict[Any, Gram], key: Any, gram: Gram) -> None:
        into[key] = into[key].merged(gram) if key in into else gram

    def cross(self, plan: WeightPlan, weight: Tensor) -> Tensor | None:
        """2·mean((y₀ − y)·xᵀ), [out, in]: the error of the output (or its sum with the stream) against the original."""
        owner = self._owner.get(plan.read_as)
        if owner not in self._input_error:
            return None
        cross = weight @ self._input_error[owner].hessian[0].to(weight.device)
        residual_error = self._residual_error.get(plan.slice.parameter)
        return cross if residual_error is None else cross + residual_error.hessian[0].to(weight.device)

    def _mask(self, x: Tensor) -> Tensor | None:
        fits = self._token_mask is not None and x.shape[:-1].numel() == self._token_mask.numel()
        return self._token_mask.reshape(-1) if fits and self._token_mask is not None else None

    def reached(self, plan: WeightPlan) -> bool:
        """Whether the weight received a token."""
        owner = self._owner.get(plan.read_as)
        return owner is not None and owner in self._grams and self._grams[owner].rows > 0

    def of(self, plan: WeightPlan) -> Gram:
        """The Gram matrix of a weight's inputs.

        Raises:
            CalibrationError: the weight received no token.
        """
        if not self.reached(plan):
            raise CalibrationError(
                f"layer {plan.name}: no token of the calibration text reached it: use more text (--samples)"
            )
        return self._grams[self._owner[plan.read_as]]

    def order(self) -> list[list[str]]:
        """The parameters grouped by input, in the order of their first read."""
        groups: dict[str, list[str]] = {}
        for (name, _), (owner, _) in self._owner.items():
            members = groups.setdefault(owner, [])
            if name not in members:
                members.append(name)
        return list(groups.values())


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
