"""Text from untrusted files (names, paths, errors of other libraries), made safe to display."""

import re


def plain(text: str) -> str:
    r"""Text without characters that control a terminal or a page, or mislead their reader.

    Line breaks, tabs and unusual spaces become spaces; escape codes, other control characters, directional
    marks, zero-width characters and lone surrogates are written as Python escapes.

    >>> print(plain("conv\x1b[31m\n1"), plain("a\u202eb"), plain("Größe, 層"))
    conv\x1b[31m 1 a\u202eb Größe, 層
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def one_line(text: str) -> str:
    r"""A message as one line of plain text: line breaks and the indentation around them become one space.

    >>> one_line("a recipe:\n    line 1, column 2")
    'a recipe: line 1, column 2'
    """
    return plain(re.sub(r"\s*[\n\r]\s*", " ", text.strip()))


def _visible(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() and letter not in "\x1c\x1d\x1e\x1f" else letter.encode("unicode_escape").decode()
