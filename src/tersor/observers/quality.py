"""Is the calibration data itself good enough? Judged from what was gathered of all sites."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mode

from tersor.errors import CalibrationError
from tersor.observers.statistics import Statistics


@dataclass(frozen=True)
class CalibrationQuality:
    """What is to be said about the calibration data.

    Attributes:
        samples: how many were seen.
        moved: for each site the share of its final range that only the second half of the data added.
            None where one sample is all there was.
        repeated: the share of samples that were there before.
        warnings: in plain words, each with what to do; empty if the data is good.
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
    """The verdict on the calibration data, from the statistics of all sites.

    Args:
        few: fewer samples than this are too few; 100 to 1,000 are usual.
        far: a range that the second half widened by more than this share of its final width moved far.
        most: the share of sites that may have moved far; extremes creep on for ever.
        often: the share of samples that may be repetitions.

    Raises:
        CalibrationError: there is no site.

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
            "no statistics to judge: no site was calibrated; does the recipe quantize anything?"
        )
    # Most tensors have a row for each sample; a few fold other dimensions into the first or have none.
    samples = mode(s.rows for s in sites.values())
    moved = {name: _moved(s) for name, s in sites.items()}
    # A repeated sample repeats everywhere; a tensor that is poor in values repeats by itself.
    repeated = min(s.fingerprints.repeated for s in sites.values())
    warnings = []
    if samples < few:
        warnings.append(f"only {samples} calibration samples: {few} to 1,000 are usual, give more")
    if repeated > often:
        warnings.append(
            f"{repeated * 100:.0f} % of the calibration samples repeat earlier ones: they add nothing, "
            "give different ones"
        )
    widest = sorted(((share, name) for name, share in moved.items() if share and share > far), reverse=True)
    if len(widest) > most * len(sites):
        worst = ", ".join(f"{name} by {share * 100:.0f} %" for share, name in widest[:3])
        warnings.append(
            f"the second half of the calibration data still widened {len(widest)} of {len(sites)} ranges by "
            f"more than {far * 100:.0f} % (most: {worst}): give more data, or shuffle it"
        )
    return CalibrationQuality(samples, moved, repeated, tuple(warnings))


def _moved(statistics: Statistics) -> float | None:
    halves = statistics.halves
    if halves is None:
        return None
    whole = max(statistics.max, 0.0) - min(statistics.min, 0.0)
    first = max(halves[0].high, 0.0) - min(halves[0].low, 0.0)
    return 1.0 - first / whole if whole else 0.0
