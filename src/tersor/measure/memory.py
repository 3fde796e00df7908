"""Resident memory of a deployed model, measured in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import save_file
from torch import Tensor

from tersor.errors import EngineError


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a fresh process: imports done, model loaded, model called. Mapped files count."""

    before_load: int
    after_load: int
    after_calls: int

    @property
    def model_bytes(self) -> int:
        """What loading and calling the model added: the model's own memory."""
        return max(0, self.after_calls - self.before_load)


def measure_memory(
    loader: str,
    arguments: Sequence[Any],
    inputs: Sequence[Tensor],
    *,
    imports: Sequence[str] = (),
    calls: int = 5,
    threads: int | None = None,
    timeout: float = 300.0,
) -> Memory:
    """Loads a saved model in a fresh process, calls it and reads the resident memory.

    Args:
        loader: "module:function"; given `arguments` (JSON values) it returns what is called with `inputs`.
        imports: modules imported before the first reading: a library is not charged to the model.
        threads: sets torch's threads there; the loader's own are among its arguments.

    Raises:
        EngineError: when the process fails or takes longer than `timeout` seconds; its last words are quoted.
    """
    with tempfile.TemporaryDirectory(prefix="tersor-memory-") as folder:
        path = Path(folder) / "inputs.safetensors"
        save_file({str(k): x.detach().cpu().contiguous().clone() for k, x in enumerate(inputs)}, path)
        job = {
            "loader": loader, "arguments": list(arguments), "inputs": str(path), "imports": list(imports),
            "calls": calls, "threads": threads,
        }  # fmt: skip
        command = [sys.executable, "-m", "tersor.measure.memory_probe", json.dumps(job)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"{loader} was not done within {timeout:g} s while its memory was measured; give it more time"
            ) from error
    if done.returncode:
        words = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise EngineError(
            f"{loader} failed in the process that measures memory: {words}; load the model by hand"
        )
    # Engines print too: ours is the last line.
    return Memory(**json.loads(done.stdout.strip().splitlines()[-1]))


def resident_bytes() -> int:
    """What this process keeps in memory now.

    >>> resident_bytes() > 1_000_000
    True
    """
    return psutil.Process().memory_info().rss


def peak_bytes() -> int | None:
    """The most this process ever kept in memory; None where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
