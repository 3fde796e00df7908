"""Regular expressions of foreign files, matched in a time that grows with the text alone.

Python's ``re`` goes back and tries again, which a pattern like ``(a+)+$`` makes take for ever. These patterns are
turned into an automaton, whose states are followed side by side; what it does not know is refused.
"""

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache

from tersor.errors import CheckpointError

MAX_PATTERN = 1000
MAX_STATES = 5000
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
_COUNT = re.compile(r"\{(\d{1,4})?(,)?(\d{1,4})?\}")
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")
_ESCAPES = set("dDwWsS")


def matches(pattern: str, text: str) -> bool:
    """Whether ``re.match(pattern, text)`` finds something, in linear time.

    Raises:
        CheckpointError: the pattern is none, is too long, or looks around, refers back or has flags.

    >>> matches(r"model\\.layers\\.\\d+\\.mlp", "model.layers.11.mlp.up_proj")
    True
    >>> matches("(a|a)*b", "a" * 1000)
    False
    >>> matches(r"(a)\\1", "aa")
    Traceback (most recent call last):
    tersor.errors.CheckpointError: the pattern '(a)\\\\1' is not read: ...
    """
    made = _compiled(pattern)
    if made.simple and len(text) <= 200:
        return re.match(pattern, text) is not None
    return made.run(text)


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> "_Automaton":
    try:
        if len(pattern) > MAX_PATTERN:
            raise ValueError(f"it has more than {MAX_PATTERN} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, about patterns that a later version may read otherwise
            re.compile(pattern)
        made = _Automaton(pattern)
        start, end = made.alternatives()
        if made.at < len(pattern):
            raise ValueError("a bracket is closed that was not opened")
        made.start, made.end = start, end
        return made
    except (ValueError, OverflowError, re.error, RecursionError) as error:
        raise CheckpointError(
            f"the pattern {pattern[:100]!r} is not read: {error or 'it is nested too deep'}; patterns of "
            "quantization_config have characters, classes, groups, alternatives, repetitions, ^ and $: name the layers"
        ) from error


class _Automaton:
    """States with moves: by a character that a test takes, or free, some of them at one end of the text only."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.depth = pattern, 0, 0
        self.free: list[list[tuple[str, int]]] = []
        self.taking: dict[int, tuple[re.Pattern[str], int]] = {}
        self.start = self.end = 0
        # Three repetitions, none of them of a group, go back 200³/6 times at most; ``re`` is faster then.
        self.simple = len(re.findall(r"[*+{]", pattern)) <= 3 and not re.search(r"\)[*+{?]", pattern)

    def run(self, text: str) -> bool:
        """Whether some beginning of the text is matched."""
        states = self._reached([self.start], True, not text)
        for k, character in enumerate(text):
            if self.end in states or not states:
                break
            moved = [to for s in states if s in self.taking for test, to in [self.taking[s]] if test.match(character)]
            states = self._reached(moved, False, k + 1 == len(text))
        return self.end in states

    def _reached(self, states: Iterable[int], first: bool, last: bool) -> set[int]:
        found, waiting = set[int](), list(states)
        open_ = {"": True, "^": first, "$": last}
        while waiting:
            state = waiting.pop()
            if state not in found:
                found.add(state)
                waiting += [to for where, to in self.free[state] if open_[where]]
        return found

    def alternatives(self) -> tuple[int, int]:
        """Branches up to a closing bracket or the end."""
        self.depth += 1
        if self.depth > 50:
            raise ValueError("it is nested too deep")
        start, end = self._state(), self._state()
        while True:
            first, last = self._sequence()
            self.free[start].append(("", first))
            self.free[last].append(("", end))
            if self._next() != "|":
                self.depth -= 1
                return start, end
            self.at += 1

    def _sequence(self) -> tuple[int, int]:
        start = end = self._state()
        while self._next() not in ("", "|", ")"):
            begin = self.at
            first, last = self._atom()
            for low, high in self._repetitions():
                after = self.at
                first, last = self._repeated(begin, first, last, low, high)
                self.at = after
            self.free[end].append(("", first))
            end = last
        return start, end

    def _repetitions(self) -> Iterable[tuple[int, int | None]]:
        bounds: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self._next() in bounds:
            found = bounds[self._next()]
            self.at += 1
        elif (count := _COUNT.match(self.pattern, self.at)) and (count[1] or count[3]):
            low = int(count[1] or 0)
            found = low, (int(count[3]) if count[3] else None) if count[2] else low
            self.at = count.end()
        else:
            return
        if self._next() == "?":  # lazy: the same texts match
            self.at += 1
        if self._next() in (*bounds, "{") and self._next():
            raise ValueError("a repetition is repeated")
        yield found

    def _repeated(self, begin: int, first: int, last: int, low: int, high: int | None) -> tuple[int, int]:
        """The atom at ``begin`` as often as that; it is read again for each copy."""
        if high is not None and high < low:
            raise ValueError("the smaller bound of a repetition comes first")
        start = end = self._state()
        copies = max(low, 1) if high is None else high
        for k in range(copies):
            if k:
                self.at = begin
                first, last = self._atom()
            after = self._state()
            self.free[end].append(("", first))
            self.free[last].append(("", after))
            if k >= low:
                self.free[end].append(("", after))
            if high is None and k == copies - 1:
                self.free[last].append(("", first))
            end = after
        return start, end

    def _atom(self) -> tuple[int, int]:
        character = self._next()
        if character == "(":
            group = _GROUP.match(self.pattern, self.at)
            if group is None:
                raise ValueError("groups that look around or set flags are not known")
            self.at = group.end()
            found = self.alternatives()
            if self._next() != ")":
                raise ValueError("a bracket is not closed")
            self.at += 1
            return found
        start, end = self._state(), self._state()
        if character in "^$":
            self.at += 1
            self.free[start].append((character, end))
            return start, end
        self.taking[start] = self._test(character), end
        return start, end

    def _test(self, character: str) -> re.Pattern[str]:
        """What takes one character."""
        length = 1
        if character == "[":
            found = _CLASS.match(self.pattern, self.at)
            if found is None:
                raise ValueError("a class is not closed")
            length = len(found[0])
        elif character == "\\":
            following = self.pattern[self.at + 1 : self.at + 2]
            if not following or (following.isalnum() and following not in _ESCAPES):
                raise ValueError(f"\\{following} is not known")
            length = 2
        elif character in "*+?" or ((count := _COUNT.match(self.pattern, self.at)) and (count[1] or count[3])):
            raise ValueError("nothing is repeated")
        text = self.pattern[self.at : self.at + length]
        self.at += length
        return re.compile(re.escape(text) if text in "{}])" else text)

    def _next(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _state(self) -> int:
        self.free.append([])
        if len(self.free) > MAX_STATES:
            raise ValueError("its repetitions make it too long")
        return len(self.free) - 1
