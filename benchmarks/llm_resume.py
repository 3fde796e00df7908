"""Kills of a run on stories260k at random moments: what comes of going on must be the same, bit by bit."""

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import THREADS, Claim, Outcome, main
from benchmarks.tasks.llm import stories

TEXT = Path(__file__).parents[1] / "../shared/data/stories260k/tinystories_train.txt"


def bench(quick: bool) -> Outcome:
    """Five kills, each at a random moment after a random block."""
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as folder:
        return _kills(quick, Path(folder))


def _kills(quick: bool, folder: Path) -> Outcome:
    source = stories(folder / "stories")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "name: int4\nweights: {format: int4, granularity: channel, solver: gptq, range: mse}\n"
        "activations: {format: fp32}\nbias_correction: false\n"
    )
    command = [
        sys.executable, "-c", "from tersor.cli import main; main()", "compress", str(source), "-r", str(recipe),
        "--data", str(TEXT.resolve()), "--samples", "16", "--threads", str(THREADS), "-o",
    ]  # fmt: skip
    subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
    draw, found = random.Random(0), []
    wanted = 1 if quick else 5
    for k in range(wanted):
        out, work = folder / f"killed-{k}", folder / f".killed-{k}.partial"
        blocks, seconds = draw.randrange(4), draw.uniform(0, 1)
        # A run that was ready before it was killed proves nothing.
        while not _killed([*command, str(out)], work, blocks, seconds) or out.exists():
            shutil.rmtree(out)
            seconds /= 2
        done = len(list(work.glob("block-*.json")))
        subprocess.run([*command, str(out)], check=True, capture_output=True)
        equal = _digests(out) == _digests(folder / "whole")
        found.append({"seconds_after_block": seconds, "blocks_done": done, "equal": equal})
    same, done = sum(f["equal"] for f in found), ", ".join(str(f["blocks_done"]) for f in found)
    of = f"of {wanted} the same"
    claim = Claim("llm_resume", "stories260k", same, wanted, False, of, peer=f"blocks done: {done}")
    return Outcome([claim], {"kills": found})


def _killed(command: list[str], work: Path, blocks: int, seconds: float) -> bool:
    """Whether a run was killed so long after that many of its blocks were written; False where it was ready first."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not ((work / "lock").exists() and len(list(work.glob("block-*.json"))) >= blocks):
        time.sleep(0.01)
    time.sleep(seconds)
    running.send_signal(signal.SIGKILL)
    code = running.wait()
    if code > 0:
        raise RuntimeError(f"{' '.join(command)} failed with {code}")
    return code < 0


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


if __name__ == "__main__":
    main("llm_resume", bench)
