"""Observations of a network on its data: statistics, means, Gram matrices and samples, as a mergeable value."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tersor.errors import CalibrationError
from tersor.network.calibrate import Calibration
from tersor.network.network import Network
from tersor.observers import Statistics, merge
from tersor.observers.gram import Gram
from tersor.task import batch_size

INPUT_SAMPLES = 8  # samples of a layer's input for solvers that search on them

Batch = tuple[Tensor, ...]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Observables:
    """The values to observe in a network; nodes are given by their graph names.

    Args:
        values: the nodes whose values' ``Statistics`` are collected.
        layers: the layers whose output means are taken per channel, over the first ``mean_samples`` samples.
        grams: the layers whose inputs' Gram matrices are accumulated.
        inputs: the layers whose first ``INPUT_SAMPLES`` inputs are kept.
        mean_samples: see ``layers``; at least this number of samples is kept too.
        samples: the number of samples that suffices for ``values``; None: all.

    >>> both = Observables(frozenset("a"), samples=64) | Observables(frozenset("b"))
    >>> sorted(both.values), both.samples
    (['a', 'b'], None)
    """

    values: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    grams: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    mean_samples: int = 0
    samples: int | None = None

    @property
    def kept(self) -> int:
        """The number of first samples to keep."""
        return max(self.mean_samples, INPUT_SAMPLES if self.inputs else 0, 1)

    def __or__(self, other: "Observables") -> "Observables":
        """The union of both."""
        counts = (self.samples, other.samples)
        return Observables(
            self.values | other.values,
            self.layers | other.layers,
            self.grams | other.grams,
            self.inputs | other.inputs,
            max(self.mean_samples, other.mean_samples),
            None if None in counts else max(c for c in counts if c is not None),
        )


@dataclass(frozen=True, eq=False)
class Observations:
    """The result of observing the data; it serves every plan whose observables are among those collected.

    Args:
        network: the ``signature`` of the observed network.
        observed: the collected observables.
        calibration: the statistics and the means.
        grams: 2·mean(x·xᵀ) of a layer's inputs, by layer.
        inputs: the first inputs of a layer, by layer.
        first: the first batches, of ``observed.kept`` samples or more.
    """

    network: str
    observed: Observables
    calibration: Calibration
    grams: Mapping[str, Gram]
    inputs: Mapping[str, Tensor]
    first: tuple[Batch, ...]

    def only(self, wanted: Observables) -> "Observations":
        """The wanted part of the observations.

        Raises:
            CalibrationError: naming the observables that were not collected.
        """
        for field in fields(Observables):
            asked, found = getattr(wanted, field.name), getattr(self.observed, field.name)
            if isinstance(asked, frozenset) and (lacking := sorted(asked - found)):
                raise CalibrationError(
                    f"these observations lack the {field.name} {', '.join(lacking[:5])}; observe the network for "
                    "this recipe and engine"
                )
        if wanted.mean_samples > self.observed.mean_samples:
            raise CalibrationError(
                f"these observations hold means of {self.observed.mean_samples} samples, but {wanted.mean_samples} are "
                "needed; observe the network with at least as many `correction_samples`"
            )
        found = self.calibration
        calibration = replace(
            found, statistics=_part(found.statistics, wanted.values), means=_part(found.means, wanted.layers)
        )
        grams, inputs = _part(self.grams, wanted.grams), _part(self.inputs, wanted.inputs)
        return replace(self, observed=wanted, calibration=calibration, grams=grams, inputs=inputs)

    def merged(self, other: "Observations") -> "Observations":
        """The observations of this data followed by the other's, for the same observables.

        Statistics and Gram matrices are merged by their own methods. If this part has fewer samples than the means
        need, the other part's samples count too, so that the means may cover up to twice as many.

        Raises:
            CalibrationError: the two are of different networks, or of different observables.
        """
        if self.network != other.network:
            raise CalibrationError("these observations are of different networks; merge those of one network")
        if self.observed != other.observed:
            raise CalibrationError("these observations are of different values or layers; observe both for the same")
        enough = self.calibration.samples >= self.observed.mean_samples or not _alike(self.first, other.first)
        # Keep the samples that the means are taken over, since biases are corrected on them.
        first = self.first if enough and self._kept() >= self.observed.kept else self.first + other.first
        inputs = {
            name: x if len(x) >= INPUT_SAMPLES else torch.cat([x, other.inputs[name]])[:INPUT_SAMPLES]
            for name, x in self.inputs.items()
        }
        calibration = _merged(self.calibration, other.calibration, means=not enough)
        grams = {name: gram.merged(other.grams[name]) for name, gram in self.grams.items()}
        return replace(self, calibration=calibration, grams=grams, inputs=inputs, first=first)

    def _kept(self) -> int:
        return sum(map(batch_size, self.first))


def signature(network: Network) -> str:
    """The SHA-256 of a network's graph and tensors.

    >>> from tersor.network.capture import capture
    >>> network = capture(torch.nn.Linear(2, 1).eval(), (torch.zeros(1, 2),))
    >>> signature(network) == signature(network.edit())
    True
    """
    found = hashlib.sha256(str(network.graph).encode())
    for name, tensor in network.tensors():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _merged(a: Calibration, b: Calibration, means: bool) -> Calibration:
    """The merged statistics of both; the merged means of both, or those of ``a`` alone."""
    names = [*a.statistics, *(n for n in b.statistics if n not in a.statistics)]
    statistics: dict[str, Statistics] = {}
    for name in names:
        parts = [c.statistics[name] for c in (a, b) if name in c.statistics]
        statistics[name] = parts[0] if len(parts) == 1 else merge(*parts)
    whole = replace(a, statistics=statistics, samples=a.samples + b.samples)
    if not means:
        return whole
    count = a.mean_samples + b.mean_samples
    joined = {
        name: (mean * a.mean_samples + b.means[name] * b.mean_samples) / max(count, 1) for name, mean in a.means.items()
    }
    return replace(whole, means=joined, mean_samples=count)


def _alike(a: tuple[Batch, ...], b: tuple[Batch, ...]) -> bool:
    """Whether all batches have samples of the same shape, so that they can be joined to one batch."""
    shapes: list[Any] = [[x.shape[1:] for x in batch] for batch in (*a, *b)]
    return all(s == shapes[0] for s in shapes)


def _part(found: Mapping[str, Value], names: frozenset[str]) -> dict[str, Value]:
    return {name: value for name, value in found.items() if name in names}
