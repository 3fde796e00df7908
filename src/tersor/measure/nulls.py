"""Nulls of a report: every one is explained by a warning that names its dotted path."""

import re
from typing import Any, NamedTuple

from tersor.words import said

# Null means "absent" for these, not "unknown", and needs no warning.
_MAY_BE_ABSENT = re.compile(
    r"(\.energy_joules|\.note|^layers\.weight_(format|bytes)|^ratios\.speedup_spread|^audit\.planned|^headline)$"
    r"|^(one_step|zeros|contract)$|^contract\."
    r"|^environment\.target$|^calibration(\.|$)|^layers\.(accumulated_)?sqnr_db$"  # of a layer without error or signal
    r"|\.(milliseconds|channels|weights)$|^prunings\.faster$"
    r"|^trainings\.|^timings_s\.train$"  # a loss that is no number
)


def unknown(paths: str | tuple[str, ...], reason: str) -> str:
    """The warning that explains a null.

    >>> unknown("compressed.agreement", "the output is not a row of scores")
    'compressed.agreement: unknown, because the output is not a row of scores'
    """
    names = (paths,) if isinstance(paths, str) else paths
    return said("{fields}: unknown, because {reason}", fields=", ".join(names), reason=reason)


def explains_null(warning: str) -> bool:
    """Whether a warning explains a null, and warns of nothing.

    >>> explains_null(unknown("compressed.metric", "the task has no evaluate"))
    True
    """
    return ": unknown, because " in warning


class _Null(NamedTuple):
    path: str


def _nulls(value: Any, path: str) -> list[_Null]:
    if value is None:
        return [_Null(path)]
    if isinstance(value, dict):
        return [null for key, item in value.items() for null in _nulls(item, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list | tuple):
        return [null for item in value for null in _nulls(item, path)]
    return []


def missing_explanations(data: dict[str, Any]) -> list[str]:
    """The dotted paths (without list positions) that are null and that no warning names.

    >>> missing_explanations({"original": {"metric": None}, "warnings": []})
    ['original.metric']
    >>> missing_explanations({"original": {"metric": None},
    ...                       "warnings": [unknown("original.metric", "the task was not evaluated")]})
    []
    """
    text = "\n".join(str(warning) for warning in data.get("warnings", ()))
    paths = dict.fromkeys(null.path for null in _nulls(data, ""))
    unexplained = [path for path in paths if not _MAY_BE_ABSENT.search(path)]
    return [path for path in unexplained if not re.search(rf"(?<![\w.]){re.escape(path)}(?!\w|\.\w)", text)]
