"""Regular expressions of foreign files, matched by RE2 in time linear in the text.

Python's ``re`` backtracks, which takes exponential time for a pattern like ``(a+)+$``.
"""

from functools import lru_cache
from typing import Any

from tersor.errors import CheckpointError
from tersor.packages import needing

MAX_PATTERN = 1000


def matches(pattern: str, text: str) -> bool:
    """Whether ``re.match(pattern, text)`` finds something, in linear time.

    Raises:
        CheckpointError: the pattern is invalid, too long, or has look-around or back-references; or RE2 is missing.

    >>> matches(r"model\\.layers\\.\\d+\\.mlp", "model.layers.11.mlp.up_proj")
    True
    >>> matches("(a|a)*b", "a" * 1000)
    False
    >>> matches("(?!a)b", "b")
    Traceback (most recent call last):
    tersor.errors.CheckpointError: the pattern '(?!a)b' is not read (invalid perl operator: (?!): name the layers ...
    """
    return _compiled(pattern).match(text) is not None


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> Any:
    with needing("A pattern of quantization_config", "transformers", ("re2",), CheckpointError):
        import re2
    options = re2.Options()
    options.log_errors, options.max_mem = False, 1 << 22
    said = f"it has more than {MAX_PATTERN} characters"
    try:
        if len(pattern) <= MAX_PATTERN:
            return re2.compile(pattern, options=options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0]
        said = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
    raise CheckpointError(
        f"the pattern {pattern[:100]!r} is not read ({said}): name the layers in quantization_config instead"
    )
