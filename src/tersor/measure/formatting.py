"""Format numbers for people."""

import re
from collections.abc import Mapping

from tersor.metrics import known_metric
from tersor.words import _

EXACT = 150.0  # dB, of an exact copy
_FRACTION = re.compile(r"accura|top-?\d|\bf1\b|recall|precision|agree|\biou\b|\bmap\b", re.IGNORECASE)


def size_text(count: float | None) -> str:
    """Format bytes with three digits and decimal units.

    >>> size_text(1_093_000), size_text(987), size_text(None)
    ('1.09 MB', '987 B', 'unknown')
    """
    if count is None:
        return _("unknown")
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= 1000
    return f"{_three_digits(value)} TB"


def time_text(milliseconds: float | None) -> str:
    """Format milliseconds in a suitable unit.

    >>> time_text(0.0421), time_text(3.2), time_text(4200.0), time_text(None)
    ('42.1 µs', '3.20 ms', '4.20 s', 'unknown')
    """
    if milliseconds is None:
        return _("unknown")
    if milliseconds < 0.9995:
        return f"{_three_digits(milliseconds * 1000)} µs"
    if milliseconds < 999.5:
        return f"{_three_digits(milliseconds)} ms"
    return f"{_three_digits(milliseconds / 1000)} s"


def ratio_text(value: float | None) -> str:
    """Format a ratio with one or two significant decimals.

    >>> ratio_text(3.94), ratio_text(0.81), ratio_text(12.34), ratio_text(None)
    ('3.9x', '0.81x', '12x', 'unknown')
    """
    if value is None:
        return _("unknown")
    return f"{value:.2f}x" if value < 1 else f"{value:.1f}x" if value < 9.95 else f"{value:.0f}x"


def change_text(value: float | None, better: str, worse: str) -> str:
    """Format a ratio as a comparison: above 1 is better.

    >>> change_text(3.94, "smaller", "larger"), change_text(0.5, "faster", "slower")
    ('3.9x smaller', '2.0x slower')
    >>> change_text(0.98, "faster", "slower"), change_text(1.0, "faster", "slower")
    ('1.02x slower', 'as fast')
    """
    if value is None or value <= 0:
        return _("unknown")
    if value == 1:
        return {"smaller": _("as large"), "faster": _("as fast")}.get(better, _("the same"))
    factor, word = (value, better) if value > 1 else (1 / value, worse)
    # 1.0x would hide which side of 1 it is on.
    ratio = f"{factor:.2f}x" if factor < 1.05 else ratio_text(factor)
    texts = {
        "smaller": _("{ratio} smaller", ratio=ratio),
        "larger": _("{ratio} larger", ratio=ratio),
        "faster": _("{ratio} faster", ratio=ratio),
        "slower": _("{ratio} slower", ratio=ratio),
    }
    return texts.get(word, f"{ratio} {word}")


def is_fraction(name: str, *values: float | None) -> bool:
    """Whether to format a metric in percent: it is a fraction in ``tersor.metrics.METRICS`` or an accuracy by its name,
    and all values are within 0 and 1.

    >>> is_fraction("top-1 accuracy", 0.917), is_fraction("perplexity", 0.5), is_fraction("accuracy", 91.7)
    (True, False, False)
    """
    known = known_metric(name)
    named = _FRACTION.search(name) is not None or (known is not None and known.unit == "fraction")
    return named and all(0 <= value <= 1 for value in values if value is not None)


def metric_text(value: float | None, fraction: bool, *, signed: bool = False) -> str:
    """Format a metric's value, or a difference of two (signed; in points for a fraction).

    >>> metric_text(0.9168, True), metric_text(12.3456, False), metric_text(-0.0002, True, signed=True)
    ('91.68 %', '12.35', '-0.02 points')
    >>> metric_text(-0.00001, True, signed=True)
    '0.00 points'
    """
    if value is None:
        return _("unknown")
    sign = "+" if signed else ""
    if fraction:
        number = number_text(value * 100, f"{sign}.2f")
        return _("{number} points", number=number) if signed else f"{number} %"
    return number_text(value, f"{sign}.4g")


def number_text(value: float, form: str = ".4g") -> str:
    """Format a number; one that is rounded to zero has no sign.

    >>> number_text(-0.004, "+.2f"), number_text(-0.0), number_text(0.25, "+.2f")
    ('0.00', '0', '+0.25')
    """
    text = format(value, form)
    return text if any(digit in text for digit in "123456789naif") else text.lstrip("+-")


def interval_text(low: float, high: float, fraction: bool) -> str:
    """Format the interval of a difference.

    >>> interval_text(-0.0011, 0.0015, True)
    '-0.11 to +0.15 points'
    """
    scale, form = (100, "+.2f") if fraction else (1, "+.4g")
    first, last = (number_text(bound * scale, form) for bound in (low, high))
    return _("{low} to {high} points", low=first, high=last) if fraction else _("{low} to {high}", low=first, high=last)


def db_text(value: float | None) -> str:
    """Format decibels; `EXACT` means an exact copy.

    >>> db_text(31.26), db_text(150.0), db_text(None)
    ('31.3', 'exact', 'unknown')
    """
    return _("unknown") if value is None else _("exact") if value >= EXACT else number_text(value, ".1f")


def precision_text(name: str | None) -> str:
    """What an operator ran in; only formats are written alike in every language.

    >>> precision_text("int8"), precision_text("fused"), precision_text(None)
    ('int8', 'fused', 'unknown')
    """
    return {None: _("unknown"), "fused": _("fused")}.get(name, name or "")


def named_steps(seconds: Mapping[str, float | None]) -> list[tuple[str, float]]:
    """The steps of a run that have a time, by the names that people read.

    >>> named_steps({"capture": 0.5, "solve": None})
    [('capture', 0.5)]
    """
    names = {
        "capture": _("capture"), "calibrate": _("calibrate"), "solve": _("solve"), "compile": _("compile"),
        "train": _("train"), "measure": _("measure"),
    }  # fmt: skip
    return [(names.get(key, key), value) for key, value in seconds.items() if value is not None]


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
