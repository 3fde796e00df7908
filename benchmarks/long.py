"""Long rows, one after another: each is resumable, and measured again only where what it depends on has changed."""

import argparse
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.common import THREADS, say
from benchmarks.training.rows import LONG, WORK, Place, Row, finished, measured


def bench(
    rows: Mapping[str, Row], names: list[str], *, again: bool = False, quick: bool = False, seed: int = 0,
    results: Path = LONG, work: Path = WORK,
) -> list[str]:
    """Measure the rows that are not done yet; returns the names of those that failed."""
    done = [n for n in names if not again and not quick and finished(n, rows[n], seed, results)]
    left, failed = [n for n in names if n not in done], list[str]()
    if done:
        say(f"done before, with the same parameters: {', '.join(done)}")
    for number, name in enumerate(left):
        minutes = sum(rows[n].minutes for n in left[number:])
        say(f"{name}: {len(done) + number} of {len(names)} rows done, about {minutes:.0f} minutes left")
        if again or quick:
            for old in work.glob(f"{name}-*"):
                shutil.rmtree(old)
        try:
            data = measured(name, rows[name], Place(work, seed, quick), None if quick else results)
        except Exception as error:  # the others shall still run
            failed.append(name)
            say(f"{name} FAILED: {type(error).__name__}: {error}")
            continue
        shown = {k: v for k, v in data["figures"].items() if isinstance(v, (int, float))}
        say(f"{name}, {data['seconds'] / 60:.1f} minutes: " + ", ".join(f"{k} {v:.4g}" for k, v in shown.items()))
    return failed


def main(rows: Mapping[str, Row], description: str) -> int:
    """1 where a row failed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(rows)}; none: all")
    parser.add_argument("--again", action="store_true", help="measure from the start what was measured before")
    parser.add_argument("--quick", action="store_true", help="a smoke run on little data; nothing is written")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    asked = parser.parse_args()
    if unknown := [n for n in asked.rows if n not in rows]:
        print(f"no row {', '.join(unknown)}; there are {', '.join(rows)}", file=sys.stderr)
        return 2
    torch.set_num_threads(THREADS)
    # torch.export copies a graph whose meta holds an old-style reduce.
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    work = WORK / "quick" if asked.quick else WORK
    names = asked.rows or list(rows)
    failed = bench(rows, names, again=asked.again, quick=asked.quick, seed=asked.seed, work=work)
    if failed:
        say(f"failed: {', '.join(failed)}; run again to go on from their last epoch")
    return 1 if failed else 0

