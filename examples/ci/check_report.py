"""Fail a build whose compressed model is not good enough: python check_report.py build/small --max-drop 0.01

It reads report.json, needs nothing but Python, and judges by the ends of intervals, not by their middle: a drop counts
as small if it is small in the worst case of its 95 % interval.
"""

import argparse
import json
import sys
from pathlib import Path


def problems(report: dict, max_drop: float, min_compression: float, min_speedup: float) -> list[str]:
    """What is not good enough, in sentences; none if all is.

    Args:
        max_drop: the most that the metric may lose, in its own unit: 0.01 is one point of an accuracy from 0 to 1.
        min_compression, min_speedup: the least that sizes and latencies are divided by; 0 asks for nothing.
    """
    found, metric = [], report["metric"]["name"]
    interval, ratios = report["compressed"]["metric_interval"], report["ratios"]
    if interval is None:
        reasons = [w for w in report["warnings"] if "compressed.metric_interval" in w]
        found.append(f"{metric} has no interval: {'; '.join(reasons) or 'the report does not say why'}")
    elif not interval[1] <= max_drop:  # NaN is not good enough either
        found.append(f"{metric} may have dropped by {interval[1]:.4g} (95 %), more than {max_drop:g}")
    worst = (ratios.get("speedup_spread") or [ratios["speedup"]])[0]
    asked = (
        (ratios["compression"], min_compression, "smaller"),
        (worst, min_speedup, "faster in the worst round"),
    )
    for value, least, words in asked:
        if least and value is None:
            found.append(f"how much {words} is unknown, and {least:g}x was asked for")
        elif least and not value >= least:
            found.append(f"{value:.2f}x {words}, less than {least:g}x")
    return found


def main(words: list[str] | None = None) -> int:
    """0 if the report is good enough, else 1 with a line for everything that is not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="a folder that `tersor compress --out` wrote, or its report.json")
    parser.add_argument("--max-drop", type=float, required=True, help="the most that the metric may lose")
    parser.add_argument("--min-compression", type=float, default=0.0, help="the least compression, such as 3.5")
    parser.add_argument("--min-speedup", type=float, default=0.0, help="the least speed-up; for quiet machines only")
    given = parser.parse_args(words)
    path = given.report / "report.json" if given.report.is_dir() else given.report
    report = json.loads(path.read_text(encoding="utf-8"))
    if report.get("kind") == "language":
        print("this is the report of a language model, which has no interval of a metric", file=sys.stderr)
        return 1
    found = problems(report, given.max_drop, given.min_compression, given.min_speedup)
    for problem in found:
        print(problem, file=sys.stderr)
    print("not good enough" if found else f"good enough: {report.get('headline') or 'see report.html'}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
