"""CPU seconds of ``tersor --version`` and of help, each in a process of its own: nothing heavy may be imported."""

import resource
import subprocess
import sys
from statistics import median

from benchmarks import common
from benchmarks.common import Claim, Outcome

COMMANDS = ("--version", "--help", "compress --help")


def bench(quick: bool) -> Outcome:
    """The median of user and system time of several processes, and of an interpreter that does nothing."""
    rounds = 3 if quick else 15
    bare = median(cpu_seconds(["-c", "pass"]) for _ in range(rounds))
    claims, details = [], {"python": bare}
    for words in COMMANDS:
        times = [cpu_seconds(["-m", "tersor.cli", *words.split()]) for _ in range(rounds)]
        details[words] = median(times)
        spread, peer = (min(times), max(times)), f"Python {bare:.2f} s"
        claims.append(Claim("startup", f"tersor {words}", median(times), 0.4, unit="s", spread=spread, peer=peer))
    return Outcome(claims, details)


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    common.main("startup", bench)
