"""The lines of a folder's report: one for every weight, and what its experts and its training call for."""

from collections.abc import Sequence
from typing import Any

from tersor.measure.language import WeightRecord
from tersor.pipeline.folder.blockwise import KEPT
from tersor.pipeline.folder.job import Job
from tersor.pipeline.folder.plan import WeightPlan
from tersor.words import said


def unreached(records: list[dict[str, Any]]) -> list[str]:
    """The experts that were rounded because no token reached them, by name."""
    names = [r["name"] for r in records if r["method"] != KEPT and r["note"]]
    if not names:
        return []
    listed = ", ".join(names[:3])
    if len(names) > 3:
        listed = said("{names} and {count} more", names=listed, count=len(names) - 3)
    return [
        said(
            "{count} weights of experts that no token of the calibration text reached are rounded to nearest: {names}; "
            "more text (--samples) may reach them",
            count=len(names), names=listed,
        )
    ]  # fmt: skip


def worse(trained: Sequence[dict[str, Any]]) -> list[str]:
    """What training did not improve, by name."""
    names = [row["name"] or said("the scales, end to end") for row in trained if not row["kept"]]
    return [
        said("training did not lower the error on held-out text, so it is undone: {names}", names=", ".join(names))
    ] if names else []


def record(plan: WeightPlan, solved: dict[str, Any] | None, job: Job) -> WeightRecord:
    """The line of a weight, from the journal's entry for it; None: nothing happened to it."""
    if solved is None or not plan.touched:
        size = job.source.entries[plan.slice.name].nbytes
        return WeightRecord(
            name=plan.name, shape=plan.shape, format=None, method=KEPT, bytes=size, note=plan.reason
        )
    kinds = [f"{plan.sparsity} zeros"] if plan.sparsity else []
    kinds += [str(plan.spec)] if plan.spec else []
    kept = solved["method"] == KEPT
    quantized = plan.spec is not None and not kept
    size = job.preflight.bytes_of(plan) if quantized else job.source.entries[plan.slice.name].nbytes
    kind = None if kept else ", ".join(kinds)
    return WeightRecord(shape=plan.shape, format=kind, bytes=size, **solved)
