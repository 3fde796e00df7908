"""The end of a search: the best candidate with its report, the verdict, and the alternatives in a folder."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tersor.measure import Report
from tersor.measure.choosing.contract import Verdict
from tersor.measure.formatting import metric_text, ratio_text, size_text
from tersor.measure.parts.contract import Contract, Tried
from tersor.pipeline.compressed import Compressed, save_in
from tersor.search.bench import Bench
from tersor.search.goal import Budget
from tersor.search.judge import Judge
from tersor.search.trial import NETWORK, Ledger, Trial
from tersor.words import said

FRONT = "front"
OTHERS = 5
"""Evaluations beside those of candidates: the original twice, and three networks for the report."""


def proved(bench: Bench, judge: Judge, trials: Sequence[Trial], time: Budget, *, ended: bool) -> Compressed:
    """The best trial, measured once more with its whole report, and judged."""
    best = judge.best(trials)
    assert best is not None
    found = bench.result(bench.made(best.recipe), best.recipe, report=True)
    report = found.report
    verdict = judge.verdict(best)
    kept, proven = _kept(judge, best, report, verdict)
    contract = Contract(
        goal=judge.goal.sentences(judge.fraction),
        kept=kept,
        proven=proven,
        verdict=tuple(_sentences(judge, best, report, verdict)),
        bound=None if judge.goal.max_drop is None else judge.bound,
        drop=judge.drop(best)[0] if verdict is None else verdict.drop,
        interval=None if verdict is None else verdict.interval,
        samples=None if verdict is None else verdict.samples,
        needed=None if verdict is None else verdict.needed,
        apart=judge.apart,
        evaluations=OTHERS + sum(not t.failed for t in trials),
        seconds=time.used,
        budget=time.seconds,
        tried=rows(judge, trials, best),
    )
    warnings = (*report.warnings, *(() if kept else (_advice(bench, judge, ended),)))
    return replace(found, report=report.model_copy(update={"contract": contract, "warnings": warnings}))


def rows(judge: Judge, trials: Sequence[Trial], best: Trial) -> tuple[Tried, ...]:
    """All trials as the report keeps them."""
    made = [t for t in trials if not t.failed]
    lost = {id(t): judge.drop(t)[0] for t in made}

    def beaten(t: Trial) -> bool:
        mine = t.facts.speedup, -lost[id(t)]
        others = ((o.facts.speedup, -lost[id(o)]) for o in made)
        return any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in others)

    found = list[Tried]()
    for number, t in enumerate(trials):
        if t.failed:
            found.append(Tried(name=t.facts.name, seconds=t.facts.seconds, error=t.facts.error))
            continue
        front = not beaten(t)
        found.append(
            Tried(
                name=t.facts.name, seconds=t.facts.seconds, speedup=t.facts.speedup, spread=t.facts.spread,
                over_first=t.facts.over_first, predicted=t.facts.predicted, bytes=t.facts.bytes, drop=lost[id(t)],
                front=front, chosen=t is best,
                folder=f"{number:02}-{_slug(t.facts.name)}" if front and t is not best else "",
            )
        )  # fmt: skip
    return tuple(found)


def saved(found: Compressed, trials: Sequence[Trial], ledger: Ledger, parts: Path, out: Path, force: bool) -> None:
    """Write the result into its folder, and the alternatives below ``front``."""
    others = {
        f"{FRONT}/{row.folder}": ledger.place(trial.candidate) / NETWORK
        for trial, row in zip(trials, found.report.contract.tried, strict=True)
        if row.folder
    }
    save_in(parts, found, out, force, others)


def _kept(judge: Judge, best: Trial, report: Report, verdict: Verdict | None) -> tuple[bool, bool]:
    """Whether all that was asked is kept, and whether chance does not explain it."""
    goal, kept, proven = judge.goal, True, True
    if goal.max_drop is not None:
        kept = judge.drop(best)[0] <= judge.bound if verdict is None else verdict.kept
        proven = verdict is not None and verdict.proven and judge.apart
    if goal.min_speedup is not None:
        value, spread = report.ratios.speedup or 0.0, report.ratios.speedup_spread
        kept, proven = kept and value >= goal.min_speedup, proven and (spread or (value,))[0] >= goal.min_speedup
    if goal.max_bytes is not None:
        kept = kept and (report.compressed.bytes or 0) <= goal.max_bytes
    return kept, kept and proven


def _sentences(judge: Judge, best: Trial, report: Report, verdict: Verdict | None) -> list[str]:
    """What is known of each part of the contract."""
    goal, found = judge.goal, list[str]()
    if verdict is not None:
        found.append(verdict.sentence(judge.fraction))
        if not judge.apart:
            found.append(said("The same samples chose and judged, for there are too few to divide."))
    elif goal.max_drop is not None:
        drop, bound = (metric_text(x, judge.fraction, signed=True) for x in (judge.drop(best)[0], judge.bound))
        found.append(
            said("{drop} of {bound} lost; evaluate returns one number, so chance is unknown, and the same samples "
                 "chose and judged.", drop=drop, bound=bound)
        )  # fmt: skip
    if goal.min_speedup is not None:
        found.append(said("{times} as fast, asked {asked}.", times=ratio_text(report.ratios.speedup),
                          asked=ratio_text(goal.min_speedup)))  # fmt: skip
    if goal.max_bytes is not None:
        found.append(said("{size}, asked {asked}.", size=size_text(report.compressed.bytes),
                          asked=size_text(goal.max_bytes)))  # fmt: skip
    return found


def _advice(bench: Bench, judge: Judge, ended: bool) -> str:
    """What would help a contract that was not kept."""
    if not ended:
        return said("contract: not kept within the budget; the search had more to try: give it more time")
    if judge.goal.max_drop is None:
        return said("contract: not kept; allow more to go, another engine, or a smaller speed or a larger size")
    if bench.task.train is None:
        return said(
            "contract: not kept by the nearest candidate; what would help: data to train with (Task.train) and "
            "`finetune` with int8-qat, or a larger max_drop"
        )
    return said(
        "contract: not kept by the nearest candidate; what would help: `finetune` with int8-qat, or a larger max_drop"
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "candidate"
