"""Text of foreign files (names, paths, errors of other libraries) that cannot act on what shows it."""

import re


def plain(text: str) -> str:
    r"""Text without letters that a terminal, a page or a reader of either would obey.

    Line breaks, tabs and unusual spaces become spaces; escape codes, other control characters, marks that turn the
    direction of writing, letters of no width and lone surrogates are spelled out, as Python spells them.

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
