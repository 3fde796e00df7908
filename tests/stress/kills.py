"""Runs that are killed at random moments: nothing is lost, torn or left behind, and a resumed run gives the same bytes.

`python -m tests.stress.kills KIND SIGNAL COUNT SEED` prints one row as JSON. The process imports everything once and
forks a child for each run, which saves the seconds that importing takes.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

import tersor
import tersor.cli
from tersor.checkpoints.manifest import MANIFEST
from tersor.cli.signals import ending
from tests.stress.row import Row

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
TASK = """
import torch, tersor
def task():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5))
    data = [(torch.rand(16, 3, 8, 8),)]
    return tersor.Task("killed", net.eval(), (torch.zeros(1, 3, 8, 8),), lambda: data)
"""
# Of their bytes the time of day is no part.
_TIMED = ("report.json", "report.html", MANIFEST)


class Place:
    """A folder for one series of runs, with temporary files of its own."""

    def __init__(self, kind: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="stress-"))
        self.temporary, self.work = self.root / "tmp", self.root / "work"
        self.temporary.mkdir()
        self.work.mkdir()
        self.out = self.work / "out"
        kinds = {"task": self._task, "save": self._save, "folder": self._folder}
        self.command: Callable[[], object] = kinds[kind]()

    def _task(self) -> Callable[[], object]:
        (self.root / "task.py").write_text(TASK, encoding="utf8")
        words = ["tersor", "compress", str(self.root / "task.py"), "-o", str(self.out), "--force", "--threads", "1"]

        def command() -> None:
            sys.argv = words
            tersor.cli.main()

        return command

    def _save(self) -> Callable[[], object]:
        """A task without its report, most of whose time is spent outside of what writes."""

        def command() -> None:
            (self.root / "task.py").write_text(TASK, encoding="utf8")
            with ending():
                task = tersor.cli.load_task(self.root / "task.py")
                tersor.compress(task, threads=1, report=False, progress=False).save(self.out, force=True)

        return command

    def _folder(self) -> Callable[[], object]:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {"vocab_size": 48, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 64}
        heads = {"num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2}
        LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(self.root / "source")
        tokens = torch.randint(3, 47, (12, 32), generator=torch.Generator().manual_seed(1))

        def command() -> None:
            with ending():
                arguments = (self.root / "source", self.out, "int4-gptq", tokens)
                tersor.compress_folder(*arguments, evaluate=tokens[:2], progress=False)

        return command

    def start(self) -> int:
        """A child that runs the command."""
        child = os.fork()
        if child:
            return child
        code = 1
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs behind ignore it
        try:
            os.environ["TMPDIR"] = tempfile.tempdir = str(self.temporary)
            with (self.root / "log").open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            self.command()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def finish(self) -> float:
        """Run to the end, and say how long it took."""
        start = time.monotonic()
        _, status = os.waitpid(self.start(), 0)
        if status:
            raise RuntimeError(f"a run failed: {(self.root / 'log').read_text(encoding='utf8')[-2000:]}")
        return time.monotonic() - start

    def digests(self) -> dict[str, str]:
        """The bytes of the result."""
        return {p.name: digest(p) for p in sorted(self.out.iterdir()) if p.name not in _TIMED}

    def torn(self) -> bool:
        """Whether the result is there and not whole."""
        manifest = json.loads((self.out / MANIFEST).read_text(encoding="utf8"))
        return any(digest(self.out / name) != entry["sha256"] for name, entry in manifest["files"].items())

    def left(self) -> list[str]:
        """What is there besides the result."""
        # PyTorch's compiler keeps a cache between runs.
        found = [p for p in self.temporary.iterdir() if not p.name.startswith("torchinductor")]
        found += [p for p in self.work.iterdir() if p != self.out]
        return [str(path.relative_to(self.root)) for path in found] + self.processes()

    def processes(self) -> list[str]:
        """Processes that work with our files; they have some seconds to end."""
        for _ in range(50):
            found = [p.info for p in psutil.process_iter(["pid", "cmdline"]) if self._ours(p.info["cmdline"] or ())]
            if not found:
                return []
            time.sleep(0.1)
        return [f"process {info['pid']}" for info in found]

    def _ours(self, words: list[str]) -> bool:
        return any(str(self.temporary) in word for word in words)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def row(kind: str, name: str, count: int, seed: int = 0) -> Row:
    """Kill ``count`` runs at random moments, not counting those that end before; a folder is resumed after each."""
    begun, chance, place = time.monotonic(), random.Random(seed), Place(kind)
    place.finish()
    seconds = place.finish() if kind != "folder" else _fresh(place)
    wanted, found = place.digests(), dict.fromkeys(("killed", "lost", "torn", "other bytes", "left behind"), 0)
    examples: list[str] = []
    for _ in range(3 * count):
        if found["killed"] == count:
            break
        if kind == "folder":
            shutil.rmtree(place.out)
        child = place.start()
        time.sleep(chance.uniform(0, 0.95 * seconds))
        os.kill(child, SIGNALS[name])
        _, status = os.waitpid(child, 0)
        found["killed"] += status != 0
        found["lost"] += kind != "folder" and not place.out.exists()
        found["torn"] += place.out.exists() and place.torn()
        if kind == "folder":
            left = [path for path in place.left() if not path.endswith(".partial")]  # from where it is resumed
            if not place.out.exists():
                place.finish()
            found["other bytes"] += place.digests() != wanted
            left = place.left() + (left if name != "KILL" else [])
        else:
            # Nobody cleans up when killed so: the next run does.
            left = place.left() if name != "KILL" else place.processes()
            found["other bytes"] += place.out.exists() and place.digests() != wanted
        found["left behind"] += bool(left)
        examples += left[:1]
    if kind != "folder":
        place.finish()
    left = place.left()
    found["left behind"] += bool(left)
    shutil.rmtree(place.root)
    wrong = sum(value for key, value in found.items() if key != "killed")
    said = ", ".join([*(f"{key} {value}" for key, value in found.items()), *[*examples, *left][:2]])
    return Row(f"{name} at random moments, {kind}", found["killed"], wrong, said, time.monotonic() - begun)


def _fresh(place: Place) -> float:
    shutil.rmtree(place.out)
    return place.finish()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(asdict(row(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
