"""The share of equal predictions of two models, stored as one integer per prediction."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.words import said

LIMIT = 20_000_000  # stored predictions of 4 bytes each; the rest of a larger set is not compared


@dataclass(frozen=True)
class Agreement:
    """The share of equal predictions and their number, or None and the reason."""

    share: float | None
    predictions: int
    reason: str | None = None


class AgreementRecorder:
    """Wraps `predict` and records the predicted class of every row of its first output.

    Scores of rows `[N, C]`, tokens `[N, T, C]` and images `[N, C, H, W]` are reduced by argmax over C; an integer
    output is taken as the prediction. Any other output cannot be compared, and `reason` says why. Fingerprints of the
    inputs ensure that two recorders are compared only if they received the same data in the same order.

    >>> recorder = AgreementRecorder(lambda x: x)
    >>> _ = recorder(torch.tensor([[1.0, 2.0], [5.0, 3.0]]))
    >>> recorder.predictions().tolist()
    [1, 0]
    """

    def __init__(self, predict: Callable[..., Any], *, limit: int = LIMIT) -> None:
        self._predict = predict
        self._remaining = limit
        self._chunks: list[Tensor] = []
        self.fingerprints: list[tuple[Any, ...]] = []
        self.reason: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of `predict`, unchanged."""
        output = self._predict(*args, **kwargs)
        self.fingerprints.append(_fingerprint([*args, *kwargs.values()]))
        predicted, reason = choices(output)
        self.reason = self.reason or reason
        if predicted is not None and self._remaining > 0:
            stored = predicted.reshape(-1)[: self._remaining].to(torch.int32)
            self._remaining -= stored.numel()
            # A slice would keep the larger tensor alive.
            self._chunks.append(stored.clone())
        return output

    def predictions(self) -> Tensor:
        """All predictions so far, int32, 1-D."""
        return torch.cat(self._chunks) if self._chunks else torch.empty(0, dtype=torch.int32)


def choices(output: Any) -> tuple[Tensor | None, str | None]:
    """The predictions of one output, or None and the reason.

    >>> choices(torch.zeros(4, 1))
    (None, 'the first output has shape [4, 1], which is not a row of class scores')
    """
    first = _first_tensor(output)
    if first is None:
        return None, said("the model returned {kind}, which contains no tensor", kind=type(output).__name__)
    if not first.is_floating_point():
        return first.detach().cpu(), None
    axis = 1 if first.dim() in (2, 4, 5) else -1
    if first.dim() not in (2, 3, 4, 5) or first.shape[axis] < 2:
        shape = list(first.shape)
        return None, said("the first output has shape {shape}, which is not a row of class scores", shape=shape)
    return first.detach().argmax(dim=axis).cpu(), None


def same_inputs(one: AgreementRecorder, two: AgreementRecorder) -> bool:
    """Whether both received the same inputs in the same order, which every paired comparison requires."""
    return one.fingerprints == two.fingerprints


def prediction_agreement(original: AgreementRecorder, compressed: AgreementRecorder) -> Agreement:
    """The share of predictions of `compressed` that equal those of `original`.

    >>> x = torch.tensor([[1.0, 2.0], [5.0, 3.0]])
    >>> one, two = AgreementRecorder(lambda x: x), AgreementRecorder(lambda x: x * torch.tensor([1.0, 2.0]))
    >>> _ = one(x), two(x)
    >>> prediction_agreement(one, two)
    Agreement(share=0.5, predictions=2, reason=None)
    """
    reason = original.reason or compressed.reason
    a, b = original.predictions(), compressed.predictions()
    if reason is None and not same_inputs(original, compressed):
        reason = said("evaluate used other inputs, or the same in another order, the second time: fix its seed")
    if reason is None and a.shape != b.shape:
        reason = said(
            "evaluate made {original} predictions for the original and {compressed} for the compressed model",
            original=a.numel(), compressed=b.numel(),
        )  # fmt: skip
    if reason is None and not a.numel():
        reason = said("evaluate did not call predict on any sample")
    if reason is not None:
        return Agreement(None, 0, reason)
    return Agreement((a == b).double().mean().item(), a.numel())


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple):
        return None
    return next((tensor for item in items if (tensor := _first_tensor(item)) is not None), None)


def _fingerprint(inputs: list[Any]) -> tuple[Any, ...]:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    # As text, since NaN does not equal itself.
    return tuple((tuple(x.shape), repr(x.sum(dtype=torch.float64).item())) for x in tensors)
