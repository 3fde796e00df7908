"""``python -m tests.fuzz``: 10,000 mutations over all readers, and a table of what they came to."""

import argparse
import sys
import time
from pathlib import Path

KINDS = ("raw error", "crash", "over 5 s", "over 1 GB")


def main() -> int:
    """Print the table; 1 if anything was not fine."""
    sys.path[:0] = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[2])]
    from tests.fuzz.readers import READERS
    from tests.fuzz.trying import child, in_processes

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="mutations over all readers")
    parser.add_argument("--reader", action="append", choices=list(READERS), help="only these")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        import torch

        torch.set_num_threads(1)
        child(given.child[0], int(given.child[1]), int(given.child[2]))
        return 0
    names = given.reader or list(READERS)
    each = -(-given.count // len(names))
    print(f"{'reader':<30}{'mutations':>10}" + "".join(f"{kind:>12}" for kind in KINDS) + f"{'seconds':>10}")
    totals, failures = dict.fromkeys(KINDS, 0), []
    for name in names:
        start = time.monotonic()
        counts, wrong = in_processes(name, each)
        failures += [(name, *item) for item in wrong]
        totals = {kind: totals[kind] + counts[kind] for kind in KINDS}
        row = "".join(f"{counts[kind]:>12}" for kind in KINDS)
        print(f"{name:<30}{each:>10}{row}{time.monotonic() - start:>10.0f}", flush=True)
    print(f"{'all':<30}{each * len(names):>10}" + "".join(f"{totals[kind]:>12}" for kind in KINDS))
    seeds: dict[tuple[str, str], list[int]] = {}
    for name, seed, what in failures:
        seeds.setdefault((name, what), []).append(seed)
    for (name, what), found in seeds.items():
        print(f"{name}: {what} ({len(found)} times, first with the seed {found[0]})")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
