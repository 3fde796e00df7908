"""Perplexity of a language model, and its divergence from a reference, streamed and with the full protocol."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tersor.errors import MetricError
from tersor.measure.parts.base import ReportPart
from tersor.measure.windows import TextProtocol, Windows

Logits = Callable[[Tensor], Any]
Progress = Callable[[int, int], None]
# Float32 logits processed at a time; with large vocabularies a window's logits take gigabytes.
_CHUNK = 2**24


class TextScore(ReportPart):
    """The mean negative log-likelihood per token in nats, its standard error over windows, and the protocol.

    The standard error is None with only one window.
    """

    nats: float
    standard_error: float | None
    protocol: TextProtocol

    @property
    def perplexity(self) -> float:
        """exp(nats): the number of equally likely tokens with the same uncertainty."""
        return math.exp(self.nats)

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.4g} ({_mean(self.nats, self.standard_error)}); {self.protocol}"


class Divergence(ReportPart):
    """The mean KL(reference ‖ model) per token in nats, its standard error over windows, and the protocol.

    ``agreement`` is the share of positions where both predict the same token.
    """

    nats: float
    standard_error: float | None
    agreement: float
    protocol: TextProtocol

    def __str__(self) -> str:
        summary = f"KL {_mean(self.nats, self.standard_error)}, same top prediction in {self.agreement * 100:.2f} %"
        return f"{summary}; {self.protocol}"


class Comparison(NamedTuple):
    """The scores of a reference and a model on the same text, and the model's divergence from the reference."""

    reference: TextScore
    model: TextScore
    divergence: Divergence


def perplexity(
    logits: Logits,
    windows: Windows,
    *,
    batch: int = 8,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TextScore:
    """Score a model's prediction of every token in the windows from the tokens before it; no logits are kept.

    Args:
        logits: int64 ``[B, T]`` → float ``[B, T, vocabulary]``, or to an object with such ``logits``, as returned by a
            transformers model.
        batch: windows per call.
        device: the model's device.
        progress: called with (windows done, windows).

    Raises:
        MetricError: the model does not know a token, or its logits have a wrong shape or no finite likelihood.

    >>> from tersor.measure.windows import Tokens, windows_of
    >>> windows = windows_of(Tokens(torch.arange(100) % 8, bos=None, tokenizer="5b", data="d1"), length=34)
    >>> print(perplexity(lambda ids: torch.zeros(*ids.shape, 8), windows))
    perplexity 8 (2.0794 ± 0.0000 nats per token); 3 windows of 34 tokens, stride 33, 99 predicted; ...
    """

    def figures(ids: Tensor, start: int) -> Iterator[Tensor]:
        for rows in _row_chunks(_logits(logits, ids), ids):
            yield _losses(rows, start)

    sums, counts = _accumulate(figures, 1, windows, batch, device, progress)
    return _score(sums, counts, windows)


def divergence(
    logits: Logits,
    reference: Logits,
    windows: Windows,
    *,
    batch: int = 8,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Divergence:
    """The divergence of a model's predictions from a reference's, over every position of the windows.

    KL(reference ‖ model) = Σ p_ref · (log p_ref − log p_model), 0 for equal predictions. Unlike perplexity it also
    counts errors that happen to favour the text. Arguments and errors are those of ``perplexity``; MetricError also if
    the vocabularies differ.

    >>> from tersor.measure.windows import Tokens, windows_of
    >>> windows = windows_of(Tokens(torch.zeros(9, dtype=torch.int64), bos=None, tokenizer="", data=""), length=9)
    >>> sure = torch.tensor([3.0, 1.0]).log()
    >>> result = divergence(lambda ids: torch.zeros(*ids.shape, 2), lambda ids: sure.expand(*ids.shape, 2), windows)
    >>> round(result.nats, 6), round(0.75 * math.log(1.5) + 0.25 * math.log(0.5), 6), result.agreement
    (0.130812, 0.130812, 1.0)
    """

    def figures(ids: Tensor, start: int) -> Iterator[Tensor]:
        for ours, theirs in _pairs(logits, reference, ids):
            yield _distances(ours, theirs, start)

    sums, counts = _accumulate(figures, 2, windows, batch, device, progress)
    return _divergence(sums, counts, windows)


def comparison(
    logits: Logits,
    reference: Logits,
    windows: Windows,
    *,
    batch: int = 8,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Comparison:
    """The perplexities of a model and its reference, and their divergence, with one run of each.

    The results equal those of ``perplexity`` and ``divergence``; arguments and errors are those of ``divergence``.

    >>> from tersor.measure.windows import Tokens, windows_of
    >>> windows = windows_of(Tokens(torch.zeros(9, dtype=torch.int64), bos=None, tokenizer="", data=""), length=9)
    >>> sure = torch.tensor([3.0, 1.0]).log()
    >>> result = comparison(lambda ids: torch.zeros(*ids.shape, 2), lambda ids: sure.expand(*ids.shape, 2), windows)
    >>> round(result.reference.perplexity, 6), round(result.model.perplexity, 6), round(result.divergence.nats, 6)
    (1.333333, 2.0, 0.130812)
    """

    def figures(ids: Tensor, start: int) -> Iterator[Tensor]:
        for ours, theirs in _pairs(logits, reference, ids):
            yield torch.cat([_losses(theirs, start), _losses(ours, start), _distances(ours, theirs, start)])

    sums, counts = _accumulate(figures, 4, windows, batch, device, progress)
    return Comparison(
        reference=_score(sums[:1], counts, windows),
        model=_score(sums[1:2], counts, windows),
        divergence=_divergence(sums[2:], counts, windows),
    )


def _accumulate(
    figures: Callable[[Tensor, int], Iterator[Tensor]],
    kinds: int,
    windows: Windows,
    batch: int,
    device: torch.device | str,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """Sums of ``figures`` over the scored positions, float64 ``[kinds, windows]``, and the number of positions."""
    if batch < 1:
        raise MetricError(f"batch is {batch}: it must be at least 1")
    predictions = windows.protocol.length - 1
    sums = torch.zeros(kinds, len(windows), dtype=torch.float64)
    counts = torch.tensor([predictions - windows.skipped(k) for k in range(len(windows))], dtype=torch.float64)
    with torch.inference_mode():
        for start in range(0, len(windows), batch):
            ids = windows.ids[start : start + batch].to(device)
            values = torch.cat(list(figures(ids, start)), 1).unflatten(1, (len(ids), predictions))
            for k in range(len(ids)):
                sums[:, start + k] = values[:, k, windows.skipped(start + k) :].sum(1)
            if progress is not None:
                progress(start + len(ids), len(windows))
    return sums, counts


def _logits(model: Logits, ids: Tensor) -> Tensor:
    output = model(ids)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MetricError(
            f"the model returned {shape} for ids of shape {list(ids.shape)}: return logits [B, T, tokens]"
        )
    largest = int(ids.max())
    if largest >= logits.shape[-1]:
        raise MetricError(
            f"the text has token {largest}, but the model knows {logits.shape[-1]} tokens: use the tokenizer that the "
            "model was trained with"
        )
    return logits


class _Rows(NamedTuple):
    """Rows of logits, their target tokens, and their place: the number of the first row, and the rows per window."""

    place: tuple[int, int]
    logits: Tensor
    targets: Tensor


def _row_chunks(logits: Tensor, ids: Tensor) -> Iterator[_Rows]:
    """All predictions, window by window, in chunks of bounded size."""
    predictions = ids.shape[1] - 1
    for k in range(len(ids)):
        rows, targets = logits[k, :-1], ids[k, 1:].to(logits.device)
        size = max(1, _CHUNK // rows.shape[-1])
        for first in range(0, predictions, size):
            chunk = slice(first, first + size)
            yield _Rows((k * predictions + first, predictions), rows[chunk], targets[chunk])


def _pairs(logits: Logits, reference: Logits, ids: Tensor) -> Iterator[tuple[_Rows, _Rows]]:
    """The same predictions of a model and of its reference."""
    ours, theirs = _logits(logits, ids), _logits(reference, ids)
    if ours.shape != theirs.shape:
        raise MetricError(
            f"the model knows {ours.shape[-1]} tokens and the reference {theirs.shape[-1]}: compare models with the "
            "same vocabulary, or remove the padding from the larger logits"
        )
    yield from zip(_row_chunks(ours, ids), _row_chunks(theirs, ids), strict=True)


def _losses(rows: _Rows, start: int) -> Tensor:
    """The negative log-likelihood of every token, float64 ``[1, rows]``."""
    loss = torch.nn.functional.cross_entropy(rows.logits.float(), rows.targets, reduction="none")
    _check_finite(loss, start, rows.place)
    return loss.cpu().double()[None]


def _distances(ours: _Rows, theirs: _Rows, start: int) -> Tensor:
    """KL(theirs ‖ ours) of every row, and whether both predict the same token, float64 ``[2, rows]``."""
    p = theirs.logits.float().log_softmax(-1)
    q = ours.logits.float().log_softmax(-1).to(p.device)
    # Tokens with probability 0 in the reference contribute 0, though their logarithm is −∞.
    distance = torch.where(p == -math.inf, 0.0, p.exp() * (p - q)).sum(-1)
    _check_finite(distance, start, ours.place)
    same = ours.logits.argmax(-1).cpu() == theirs.logits.argmax(-1).cpu()
    return torch.stack([distance.cpu().double(), same.double()])


def _check_finite(values: Tensor, start: int, place: tuple[int, int]) -> None:
    bad = ~values.isfinite()
    if bad.any():
        first, predictions = place
        row = int(bad.nonzero()[0])
        window, position = divmod(first + row, predictions)
        raise MetricError(
            f"window {start + window}, token {position + 1}: the logits give {values[row].item()} nats; a layer "
            "overflows or excludes this token: compute in float32 or bfloat16, and check the model's weights for NaN"
        )


def _estimate(sums: Tensor, counts: Tensor) -> tuple[float, float | None]:
    """The mean over all tokens, and the standard error of this ratio over randomly drawn windows."""
    mean, n = float(sums.sum() / counts.sum()), len(sums)
    if n < 2:
        return mean, None
    spread = ((sums - mean * counts) / counts.sum()).square().sum()
    return mean, float((spread * n / (n - 1)).sqrt())


def _score(sums: Tensor, counts: Tensor, windows: Windows) -> TextScore:
    """From the sums of ``_losses``."""
    nats, error = _estimate(sums[0], counts)
    return TextScore(nats=nats, standard_error=error, protocol=windows.protocol)


def _divergence(sums: Tensor, counts: Tensor, windows: Windows) -> Divergence:
    """From the sums of ``_distances``."""
    nats, error = _estimate(sums[0], counts)
    agreement = float(sums[1].sum() / counts.sum())
    # Rounding can make the mean slightly negative.
    return Divergence(nats=max(nats, 0.0), standard_error=error, agreement=agreement, protocol=windows.protocol)


def _mean(nats: float, error: float | None) -> str:
    return f"{nats:.4f} ± {'unknown' if error is None else format(error, '.4f')} nats per token"
