"""Whether the calibration data itself is good enough, from the statistics of all sites."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mode

from tersor.errors import CalibrationError
from tersor.observers.statistics import Statistics
from tersor.words import said


@dataclass(frozen=True)
class CalibrationQuality:
    """The assessment of the calibration data.

    Attributes:
        samples: their number.
        moved: for each site the share of its final range that only the second half of the data added; None if there was
            one sample.
        repeated: the share of samples that repeat earlier ones.
        warnings: each with its remedy; empty if the data is good.
    """

    samples: int
    moved: dict[str, float | None]
    repeated: float
    warnings: tuple[str, ...]


def assess(
    sites: Mapping[str, Statistics],
    *,
    few: int = 100,
    far: float = 0.1,
    most: float = 0.5,
    often: float = 0.01,
) -> CalibrationQuality:
    """Assess the calibration data by the statistics of all sites.

    Args:
        few: fewer samples than this are too few; 100 to 1,000 are usual.
        far: a range counts as moved if the second half widened it by more than this share of its final width.
        most: the share of sites that may have moved; extremes always grow a little.
        often: the share of samples that may be repetitions.

    Raises:
        CalibrationError: if there is no site.

    >>> import torch
    >>> from tersor.observers import observe
    >>> batch = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    >>> s = observe(observe(None, batch), batch)
    >>> for warning in assess({"input": s}).warnings:
    ...     print(warning)
    only 16 calibration samples: 100 to 1,000 are usual, give more
    50 % of the calibration samples repeat earlier ones: they add nothing, give different ones
    """
    if not sites:
        raise CalibrationError(
            "no statistics to assess: no site was calibrated; check that the recipe quantizes activations"
        )
    # Most tensors have a row for each sample; a few merge other dimensions into the first or have none.
    samples = mode(s.rows for s in sites.values())
    moved = {name: _moved(s) for name, s in sites.items()}
    # A repeated sample repeats in every tensor; a tensor with few values repeats without it.
    repeated = min(s.fingerprints.repeated for s in sites.values())
    warnings = []
    if samples < few:
        warnings.append(said(
            "only {count} calibration samples: {few} to 1,000 are usual, give more",
            count=samples, few=few,
        ))
    if repeated > often:
        warnings.append(
            said(
                "{share} % of the calibration samples repeat earlier ones: they add nothing, give different ones",
                share=f"{repeated * 100:.0f}",
            )
        )
    widest = sorted(((share, name) for name, share in moved.items() if share and share > far), reverse=True)
    if len(widest) > most * len(sites):
        worst = ", ".join(f"{name} by {share * 100:.0f} %" for share, name in widest[:3])
        warnings.append(
            said(
                "the second half of the calibration data still widened {count} of {all} ranges by more than "
                "{share} % (most: {worst}): give more data, or shuffle it",
                count=len(widest), all=len(sites), share=f"{far * 100:.0f}", worst=worst,
            )
        )
    return CalibrationQuality(samples, moved, repeated, tuple(warnings))


def _moved(statistics: Statistics) -> float | None:
    halves = statistics.halves
    if halves is None:
        return None
    whole = max(statistics.max, 0.0) - min(statistics.min, 0.0)
    first = max(halves[0].high, 0.0) - min(halves[0].low, 0.0)
    return 1.0 - first / whole if whole else 0.0
