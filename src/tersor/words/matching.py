"""Find the sentence that a text was made of: its own words in their order, in time linear in the text."""

from string import Formatter


class Template:
    """A sentence with places for values, such as ``{count} layers``."""

    def __init__(self, text: str) -> None:
        self.text = text
        parts = [(words, name) for words, name, *_ in Formatter().parse(text)]
        self.names = [name for _, name in parts if name is not None]
        # What stands before, between and after the places.
        self.words = [words for words, name in parts if name is not None or words]
        if len(self.words) == len(self.names):
            self.words.append("")
        self.own = sum(map(len, self.words))
        # A place beside another, or nothing but places, could be anything; what was formatted is no value any more.
        places = [(name, form) for _, name, form, _ in Formatter().parse(text) if name is not None]
        plain = all(name.isidentifier() and not form for name, form in places)
        self.usable = self.own > 3 and plain and all(self.words[1:-1])

    def values(self, text: str) -> dict[str, str] | None:
        """What stands in each place, or None if the text was not made of this sentence.

        >>> Template("{count} of {all} layers").values("3 of 20 layers")
        {'count': '3', 'all': '20'}
        >>> Template("{count} layers").values("3 operators")
        """
        first, last = self.words[0], self.words[-1]
        if not self.usable or len(text) < self.own or not text.startswith(first) or not text.endswith(last):
            return None
        rest, found = text[len(first) : len(text) - len(last)], []
        for words in self.words[1:-1]:
            value, between, rest = rest.partition(words)
            if not between:
                return None
            found.append(value)
        values = dict(zip(self.names, [*found, rest], strict=True))
        return values if all(values.values()) else None
