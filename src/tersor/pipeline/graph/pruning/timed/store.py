"""Latencies that were measured, in a file: a run that was stopped reads them, and so chooses the same network again."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tersor.checkpoints.foreign.files import read_json
from tersor.errors import CalibrationError, TersorError
from tersor.files import write_text
from tersor.network.network import Network, op_name

WAIT, POLL = 3600.0, 0.5
"""Seconds that another process waits for the one that measures, and between two looks."""


def shape_of_work(network: Network) -> str:
    """A short hash of what decides how long a network takes: its operators and the shapes of their tensors."""
    found = hashlib.sha256()
    for node in network.graph.nodes:
        value = node.meta.get("val")
        found.update(f"{op_name(node)} {tuple(getattr(value, 'shape', ()))} {node.op}\n".encode())
    return found.hexdigest()[:20]


@dataclass
class Store:
    """Measured values by name; the same question asked again has a name of its own.

    Args:
        path: of the file; None: values are kept nowhere.
        about: what they depend on; a file about something else is not read.
        measures: whether this process measures; another one waits until the values are in the file.
    """

    path: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    measures: bool = True

    def __post_init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.values: dict[str, Any] = self._read()

    def each(self, keys: list[str], measure: Callable[[list[int]], list[Any]]) -> list[Any]:
        """The values of these keys; those that are not known are measured together.

        Args:
            measure: takes the places of what is to be measured, and returns its values.
        """
        names = list[str]()
        for key in keys:
            self.asked[key] += 1
            names.append(f"{key}-{self.asked[key]}")
        if not self.measures:
            self._wait_for(names)
        missing = [k for k, name in enumerate(names) if name not in self.values]
        if missing:
            self.values |= {names[k]: value for k, value in zip(missing, measure(missing), strict=True)}
            self._write()
        return [self.values[name] for name in names]

    def _read(self) -> dict[str, Any]:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            found = read_json(self.path, CalibrationError, "delete it")
        except TersorError:  # they are measured again
            return {}
        same = isinstance(found, dict) and found.get("about") == json.loads(json.dumps(self.about))
        return dict(found["values"]) if same and isinstance(found.get("values"), dict) else {}

    def _write(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"about": self.about, "values": self.values}))

    def _wait_for(self, names: list[str]) -> None:
        end = time.monotonic() + WAIT
        while not self.values.keys() >= set(names):
            if time.monotonic() > end:
                raise CalibrationError(
                    f"the first process has not measured latencies within {WAIT:.0f} s: see its messages"
                )
            time.sleep(POLL)
            self.values = self._read()
