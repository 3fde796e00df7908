"""What the weights of a block read, gathered batch by batch: Hessians, and what layers in front have lost."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tersor.errors import CalibrationError, CaptureError
from tersor.observers.gram import Gram
from tersor.pipeline.folder.plan import WeightPlan

Key = tuple[str, int | None]


class Hessians:
    """Gram matrices of what weights read; those that read the same tensor share one.

    Where the original model's inputs x₀ are known too, also what the outputs lack of the original's, for layers in
    front have lost it. A layer whose output is added to the residual stream answers for the sum: each token counts by
    the inverse size of the sum, since a norm behind it divides by that.

    Args:
        added: the names of such layers.
    """

    def __init__(self, added: Iterable[str] = ()) -> None:
        self.added = set(added)
        self._owner: dict[Key, Key] = {}
        self._found: dict[Key, Gram] = {}
        self._input_error: dict[Key, Gram] = {}
        self._residual_error: dict[str, Gram] = {}
        self.next_batch(None)

    def next_batch(self, token_mask: Tensor | None) -> None:
        """Begin a new batch; ``token_mask`` is bool [windows, length], True for real positions."""
        self._token_mask = token_mask
        self._batch: dict[int, tuple[Tensor, Key]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._original: dict[str, Tensor] = {}
        self._stream: dict[str, Tensor] = {}

    def see_original(self, name: str, index: int | None, transposed: bool, x: Tensor) -> None:
        """What the weight reads in the original model; of experts, who may get other tokens there, nothing is kept."""
        if index is None:
            self._original[name] = x

    def see_original_sum(self, name: str, product: Tensor, stream: Tensor) -> None:
        """What the layer's output is added to in the original model."""
        self._stream[name] = stream.clone()

    def see(self, name: str, index: int | None, transposed: bool, x: Tensor) -> None:
        """A product of the weight with ``x [..., in]``."""
        key = (name, index)
        self._inputs[name] = x
        _, first = self._batch.setdefault(id(x), (x, key))
        if self._owner.setdefault(key, first) != first:
            raise CaptureError(f"{name} reads now the input of {first[0]}, now another: it cannot be calibrated")
        if first == key and name not in self.added:
            self._count(key, x, None)

    def see_sum(self, name: str, product: Tensor, stream: Tensor) -> None:
        """What the layer's output is added to."""
        if name not in self.added:  # the first time that it is seen
            self.added.add(name)
            return
        x = self._inputs[name]
        if x.shape[:-1] != stream.shape[:-1]:
            self._count((name, None), x, None)
            return
        size = (stream.float() + product.reshape(stream.shape).float()).square().mean(-1, keepdim=True)
        scale = size.clamp(min=1e-12).rsqrt()
        self._count((name, None), x, scale)
        if name in self._stream:
            residual_error, scaled = ((t.float() * scale).to(x.dtype) for t in (self._stream[name] - stream, x))
            self._merge(self._residual_error, name, Gram.between(_rows(residual_error), _rows(scaled), self._mask(x)))

    def _count(self, key: Key, x: Tensor, scale: Tensor | None) -> None:
        scaled = x if scale is None else (x.float() * scale).to(x.dtype)
        try:
            self._merge(self._found, key, Gram.of(_rows(scaled)[None], self._mask(x)))
        except CalibrationError as error:
            raise CalibrationError(
                f"layer {key[0]}: {error}; a layer in front of it overflows: is the checkpoint whole? Else keep this "
                "one in float by a rule"
            ) from error
        if key[1] is None and (original := self._original.get(key[0])) is not None:
            input_error = original - x if scale is None else ((original - x).float() * scale).to(x.dtype)
            self._merge(self._input_error, key, Gram.between(_rows(input_error), _rows(scaled), self._mask(x)))

    @staticmethod
    def _merge(into: dict[Any, Gram], key: Any, gram: Gram) -> None:
        into[key] = into[key].merged(gram) if key in into else gram

    def cross(self, plan: WeightPlan, weight: Tensor) -> Tensor | None:
        """2·mean((y₀ − y)·xᵀ), [out, in]: what the output, with the stream it is added to, lacks of the original's."""
        owner = self._owner.get(plan.read_as)
        if owner not in self._input_error:
            return None
        cross = weight @ self._input_error[owner].hessian[0]
        residual_error = self._residual_error.get(plan.slice.parameter)
        return cross if residual_error is None else cross + residual_error.hessian[0]

    def _mask(self, x: Tensor) -> Tensor | None:
        fits = self._token_mask is not None and x.shape[:-1].numel() == self._token_mask.numel()
        return self._token_mask.reshape(-1) if fits and self._token_mask is not None else None

    def of(self, plan: WeightPlan) -> Gram:
        """The matrix of a weight.

        Raises:
            CalibrationError: no token came by.
        """
        owner = self._owner.get(plan.read_as)
        if owner is None or self._found[owner].rows == 0:
            raise CalibrationError(
                f"layer {plan.name}: no token of the calibration text came to it; give more text (--samples)"
            )
        return self._found[owner]

    def order(self) -> list[list[str]]:
        """The parameters in the order in which they are first read, those of one input together."""
        groups: dict[str, list[str]] = {}
        for (name, _), (owner, _) in self._owner.items():
            members = groups.setdefault(owner, [])
            if name not in members:
                members.append(name)
        return list(groups.values())


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
