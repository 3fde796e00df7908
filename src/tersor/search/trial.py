"""Candidates of a search, what came of each, and the folder that keeps it: what was measured is not measured again."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from tersor.checkpoints.foreign.files import read_array, read_object
from tersor.errors import RecipeError, TersorError
from tersor.files import write_text
from tersor.recipe import Recipe

JOB, FACTS, SCORES, NETWORK, RECIPE = "job.json", "trial.json", "scores.npy", "network", "recipe.yaml"
STATE = "state"
"""Of the steps: latencies that prunings measured."""
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Candidate:
    """Something to try.

    Args:
        name: what it is, in a few words.
        recipe: makes it.
        kind: candidates of one kind take about as long.
    """

    name: str
    recipe: Recipe
    kind: str = "plain"

    @property
    def digest(self) -> str:
        """A short hash of the recipe, but for its name."""
        data = self.recipe.model_dump(mode="json") | {"name": ""}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


class Facts(BaseModel):
    """What was measured of a candidate; only `error` and `seconds` where it could not be made.

    `speedup` is over the original network, `over_first` over the first candidate, both in the same rounds; `spread` is
    the 10th and 90th percentile of the former over the rounds. `predicted` is what the pruning had measured of its
    choice, over the network that was not pruned; None without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    seconds: Annotated[float, Field(ge=0)]
    speedup: Positive = 1.0
    spread: tuple[Positive, Positive] = (1.0, 1.0)
    over_first: Positive = 1.0
    predicted: Positive | None = None
    bytes: Annotated[int, Field(ge=0)] = 0
    metric: float = 0.0
    error: str = ""


@dataclass(frozen=True, eq=False)
class Trial:
    """What came of a candidate.

    Args:
        candidate: what was tried.
        facts: what was measured.
        recipe: the one that makes the same network again: what was chosen by measuring is written out.
        scores: of all samples; None if the metric is one number, or there is none.
    """

    candidate: Candidate
    facts: Facts
    recipe: Recipe
    scores: Tensor | None = None

    @property
    def failed(self) -> bool:
        """Whether it could not be made."""
        return bool(self.facts.error)


class Ledger:
    """The trials of a search, one folder for each.

    Args:
        folder: keeps them; those of another network, engine or machine are removed.
        about: what the measurements depend on.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        same = False
        if (folder / JOB).is_file():
            with suppress(TersorError):
                same = self._job().get("about") == json.loads(json.dumps(about))
        if not same:
            for old in self._folders():
                shutil.rmtree(old)
            write_text(folder / JOB, json.dumps({"about": about}))

    def memo(self, key: str, make: Callable[[], Any]) -> Any:
        """A value of an earlier run, as JSON; made if there is none."""
        data = self._job()
        if key not in data:
            data = self._job() | {key: make()}
            write_text(self.folder / JOB, json.dumps(data))
        return data[key]

    @property
    def spent(self) -> float:
        """Seconds of earlier runs."""
        found = self._job().get("spent", 0.0)
        return float(found) if isinstance(found, (int, float)) else 0.0

    def spend(self, seconds: float) -> None:
        """Keep how long all runs took so far."""
        write_text(self.folder / JOB, json.dumps(self._job() | {"spent": seconds}))

    def place(self, candidate: Candidate) -> Path:
        """The folder of a candidate."""
        return self.folder / f"trial-{candidate.digest}"

    def read(self, candidate: Candidate) -> Trial | None:
        """What came of it; None if it was not tried, or its files cannot be read."""
        folder = self.place(candidate)
        if not (folder / FACTS).is_file():
            return None
        try:
            facts = Facts.model_validate(read_object(folder / FACTS, RecipeError, "delete it"))
            recipe = Recipe.from_yaml((folder / RECIPE).read_text(encoding="utf8"), str(folder / RECIPE))
            scores = torch.from_numpy(read_array(folder / SCORES)) if (folder / SCORES).is_file() else None
        except (TersorError, ValidationError, OSError, ValueError):
            return None
        return Trial(candidate, facts, recipe, scores)

    def write(self, trial: Trial, save: Callable[[Path], Any] | None = None) -> None:
        """Keep a trial, with the folder that ``save`` writes."""
        folder, part = self.place(trial.candidate), self.folder / "out"
        for old in (folder, part):
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir()
        if save is not None:
            save(part / NETWORK)
        write_text(part / RECIPE, trial.recipe.to_yaml())
        if trial.scores is not None:
            np.save(part / SCORES, trial.scores.numpy(), allow_pickle=False)
        write_text(part / FACTS, trial.facts.model_dump_json())
        os.replace(part, folder)

    def remove(self) -> None:
        """Everything: the search has ended."""
        for old in self._folders():
            shutil.rmtree(old)
        (self.folder / JOB).unlink(missing_ok=True)

    def _job(self) -> dict[str, Any]:
        return read_object(self.folder / JOB, RecipeError, "delete it")

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and path.name.startswith(("trial-", STATE))]
