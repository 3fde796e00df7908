"""One mutation tried, and many of them in processes of their own, so that crashes, time and memory are counted."""

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tersor.errors import TersorError

SECONDS, BYTES = 5.0, 1 << 30


def folders(root: Path, names: list[str]) -> dict[str, Path]:
    """A folder for each reader, as it is before any mutation."""
    from tests.fuzz.readers import READERS

    made = {}
    for name in names:
        made[name] = root / name.replace(" ", "_")
        made[name].mkdir(parents=True)
        READERS[name].make(made[name])
    return made


def tried(name: str, folder: Path, seed: int) -> str:
    """What one mutation of one file comes to: ``fine``, or what is wrong; the file is put back."""
    from tests.fuzz.readers import READERS

    reader = READERS[name]
    path = folder / reader.files[seed % len(reader.files)]
    before = path.read_bytes()
    path.write_bytes(reader.change(before, path.name, seed))
    # Of the processor: other programs of the machine do not count; who sleeps is ended by the parent.
    start, memory = time.process_time(), _peak()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _no_terminal():
            warnings.simplefilter("ignore")
            reader.read(folder)
        found = "fine"
    except TersorError as error:
        found = "fine" if str(error) else "an empty message"
    except BaseException as error:
        found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        path.write_bytes(before)
    if time.process_time() - start > SECONDS:
        found = f"over {SECONDS:g} s"
    if _peak() - memory > BYTES:
        found = "over 1 GB"
    return found


@contextlib.contextmanager
def _no_terminal() -> Iterator[None]:
    """A terminal on which every question is answered with yes."""
    before, sys.stdin = sys.stdin, io.StringIO("y\n" * 100)
    try:
        yield
    finally:
        sys.stdin = before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(name: str, first: int, count: int) -> None:
    """Try mutations and print one line for each that is begun, and one for each that is not fine."""
    with tempfile.TemporaryDirectory() as root:
        folder = folders(Path(root), [name])[name]
        out = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        for seed in range(first, first + count):
            os.write(out, f"{seed}\n".encode())
            found = tried(name, folder, seed)
            if found != "fine":
                os.write(out, f"{seed} {json.dumps(found)}\n".encode())


def in_processes(name: str, count: int) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Counts by kind, and (seed, what) of each mutation that was not fine; crashes and hangs cost one seed each."""
    root = Path(__file__).parents[2]
    counts, wrong, seed = Counter[str](), list[tuple[int, str]](), 0
    while seed < count:
        command = [sys.executable, "-m", "tests.fuzz", "--child", name, str(seed), str(count - seed)]
        places = [str(root / "src"), str(root / "tests"), str(root), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
        with subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last, died = _watch(process, wrong)
        if died is None and last == count - 1:
            break
        if last < seed:
            raise RuntimeError(f"{name}: the folder cannot be made ({died})")
        wrong.append((last, died or f"the process ended with {process.returncode}"))
        seed = last + 1
    for _, what in wrong:
        counts[_kind(what)] += 1
    return counts, wrong


def _watch(process: subprocess.Popen[str], wrong: list[tuple[int, str]]) -> tuple[int, str | None]:
    """The last seed begun, and how the process ended if not as it should."""
    import selectors

    last, began = -1, time.monotonic()
    with selectors.DefaultSelector() as selector:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        selector.register(process.stdout, selectors.EVENT_READ)
        rest = ""
        while True:
            if not selector.select(1.0):
                if time.monotonic() - began > (20 if last >= 0 else 300):
                    process.kill()
                    return last, "hangs: over 20 s"
                continue
            text = os.read(process.stdout.fileno(), 1 << 16).decode()
            if not text:
                break
            began = time.monotonic()
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                number, _, what = line.partition(" ")
                last = int(number)
                if what:
                    wrong.append((last, json.loads(what)))
    code = process.wait()
    return last, f"crash: signal {-code}" if code < 0 else None if code == 0 else f"crash: exit code {code}"


def _kind(what: str) -> str:
    for kind in ("crash", "hangs", "over 5 s", "over 1 GB"):
        if what.startswith(kind):
            return "crash" if kind == "crash" else "over 1 GB" if "GB" in kind else "over 5 s"
    return "raw error"
