"""`make stress`: threads, compressions in a row, kills; the table, and exit code 1 if anything went wrong.

`python -m tests.stress --calls 200 --runs 8 --kills 3` tries less.
"""

import argparse
import json
import os
import subprocess
import sys

import torch

from tests.stress import memory, threads
from tests.stress.kills import SIGNALS
from tests.stress.row import HEAD, Row, show


def killed(kind: str, name: str, count: int) -> Row:
    """A row from a process of its own, which forks: this one has threads of engines."""
    command = [sys.executable, "-m", "tests.stress.kills", kind, name, str(count), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return Row(f"{name} at random moments, {kind}", count, count, done.stderr.strip()[-400:], 0.0)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Run everything, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each engine and number of threads")
    parser.add_argument("--runs", type=int, default=20, help="compressions in a row")
    parser.add_argument("--kills", type=int, default=30, help="kills with each signal, of each kind of run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD, flush=True)
    found = [show(row) for engine in (*threads.RUNNING, threads.DECODER)
             for row in threads.rows(options.calls, engines=[engine])]  # fmt: skip
    found.append(show(memory.row(options.runs)))
    found += [show(killed(kind, name, options.kills)) for kind in ("task", "folder") for name in SIGNALS]
    wrong = sum(row.wrong for row in found)
    print(f"{sum(row.runs for row in found)} runs, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
