"""The bytes of a deployed model: of its files, and resident in memory, measured in a separate process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import save_file
from torch import Tensor

from tersor.errors import EngineError, SavedFolderError
from tersor.files import temporary_folder

# Not needed to run the model.
NOT_SHIPPED = frozenset({"report.json", "report.html"})


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a fresh process after imports, after loading and after calls. Mapped files count."""

    before_load: int
    after_load: int
    after_calls: int

    @property
    def model_bytes(self) -> int:
        """The model's memory: what loading and calling it added."""
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
    """Load a saved model in a fresh process, call it and read the resident memory.

    Args:
        loader: "module:function"; called with `arguments` (JSON values), it returns the callable for `inputs`.
        imports: modules imported before the first reading, so that libraries are not counted.
        threads: torch's threads in that process; the loader gets its own number of threads in `arguments`.

    Raises:
        EngineError: the process fails or takes longer than `timeout` seconds; the message quotes its last output.
    """
    with temporary_folder() as folder:
        path = folder / "inputs.safetensors"
        save_file({str(k): x.detach().cpu().contiguous().clone() for k, x in enumerate(inputs)}, path)
        job = {
            "loader": loader, "arguments": list(arguments), "inputs": str(path), "imports": list(imports),
            "calls": calls, "threads": threads,
        }  # fmt: skip
        try:
            result = _in_child([sys.executable, "-c", _CHILD, json.dumps(job)], timeout)
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"{loader} did not finish within {timeout:g} s while its memory was measured: increase the timeout"
            ) from error
    if result.returncode:
        message = " | ".join(result.stderr.strip().splitlines()[-3:])
        raise EngineError(
            f"{loader} failed in the process that measures memory: {message}; load the model directly to debug it"
        )
    # Engines may print too; the result is the last line.
    return Memory(**json.loads(result.stdout.strip().splitlines()[-1]))


# The child's stdin is a pipe that nobody writes to: it closes when this process ends, however that happens.
_CHILD = """
import os, threading
threading.Thread(target=lambda: os._exit(len(os.read(0, 1)) + 1), daemon=True).start()
from tersor.measure.memory.probe import main
main()
"""


def _in_child(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command that ends no later than this process."""
    child_end, ours = os.pipe()
    try:
        return subprocess.run(  # noqa: S603  (no shell: this interpreter with a program of ours, the job is data)
            command, stdin=child_end, capture_output=True, text=True, timeout=timeout, check=False
        )
    finally:
        os.close(child_end)
        os.close(ours)


def resident_bytes() -> int:
    """The current resident memory of this process.

    >>> resident_bytes() > 1_000_000
    True
    """
    return psutil.Process().memory_info().rss


def peak_bytes() -> int | None:
    """The peak resident memory of this process, or None if the system does not report it."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def shipped_files(folder: Path | str) -> dict[str, int]:
    """The bytes of every file that must be shipped, by its path within the folder.

    Raises SavedFolderError if there is none.
    """
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in NOT_SHIPPED
    }
    if not files:
        raise SavedFolderError(f"{folder}: no file to ship: save the model there first")
    return files


def shipped_bytes(folder: Path | str) -> int:
    """The total bytes of the files that must be shipped.

    >>> with temporary_folder() as folder:
    ...     _ = Path(folder, "weights.bin").write_bytes(bytes(100))
    ...     _ = Path(folder, "report.json").write_text("{}")
    ...     shipped_bytes(folder)
    100
    """
    return sum(shipped_files(folder).values())
