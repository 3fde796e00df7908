"""One line of the table of `make stress`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was tried how often, and how many times it went wrong; ``detail`` are the figures behind it."""

    what: str
    runs: int
    wrong: int
    detail: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.what:<44} {self.runs:>6} {self.wrong:>6}  {self.seconds:>6.0f} s  {self.detail}"


HEAD = f"{'what':<44} {'runs':>6} {'wrong':>6}  {'took':>8}  figures"


def show(row: Row) -> Row:
    """Print a row at once: the next one may take minutes."""
    print(row, flush=True)
    return row


