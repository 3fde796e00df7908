"""What streaming a language model costs: peak memory of 1.1 B parameters in BF16, and the same bytes after kills.

Memory is measured in a process of its own that has imported everything first: what is resident then is the ground,
and the peak of resident memory (VmHWM) above it is the figure.
"""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import THREADS, Claim, Outcome, main, say
from benchmarks.tasks.llm import LARGE, TINY, stories, write_llama

TEXT = Path(__file__).parents[1] / "../shared/data/stories260k/tinystories_train.txt"


def bench(quick: bool) -> Outcome:
    """Peak memory and minutes of int4-gptq on 1.1 B parameters; five kills of a run on stories260k."""
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as folder:
        return Outcome([_memory(quick, Path(folder), details), _kills(quick, Path(folder), details)], details)


def _memory(quick: bool, folder: Path, details: dict[str, Any]) -> Claim:
    say("writing the model")
    source = write_llama(folder / "random", TINY if quick else LARGE)
    say("compressing it: about 20 minutes" if not quick else "compressing it")
    command = [sys.executable, "-m", "benchmarks.llm_stream", "--once", str(source), "4" if quick else "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    found = details["memory"] = json.loads(done.stdout.splitlines()[-1])
    before, after = found["original"] / 2**30, found["compressed"] / 2**30
    peer = f"{found['seconds'] / 60:.1f} minutes; {before:.2f} → {after:.2f} GiB"
    return Claim("llm_memory", "random Llama, BF16", found["peak"] / 2**30, 2.5, unit="GiB", peer=peer)


def once(source: Path, windows: int) -> dict[str, float]:
    """Compress in this process."""
    import openvino  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import tersor

    ground = _resident("VmRSS")
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    length = min(512, json.loads((source / "config.json").read_text())["max_position_embeddings"])
    ids = torch.randint(0, vocabulary, (windows, length), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    report = tersor.compress_folder(source, source.parent / "out", "int4-gptq", ids, samples=windows)
    return {
        "seconds": time.perf_counter() - start,
        "peak": _resident("VmHWM") - ground,
        "original": report.original_bytes,
        "compressed": report.compressed_bytes,
        "timings": report.timings_s,
    }


def _kills(quick: bool, folder: Path, details: dict[str, Any]) -> Claim:
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
    start = time.perf_counter()
    subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    draw, same, found = random.Random(0), 0, []
    for k in range(1 if quick else 5):
        out = folder / f"killed-{k}"
        after = draw.uniform(0.4, 0.9) * seconds
        running = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(after)
        running.send_signal(signal.SIGKILL)
        running.wait()
        blocks = len(list(folder.glob(f".killed-{k}.partial/block-*.json")))
        if out.exists():  # it was ready before
            shutil.rmtree(out)
        subprocess.run([*command, str(out)], check=True, capture_output=True)
        equal = _digests(out) == _digests(folder / "whole")
        same += equal
        found.append({"after_s": after, "blocks_done": blocks, "equal": equal})
    details["kills"] = {"whole_s": seconds, "runs": found}
    wanted = 1 if quick else 5
    done = ", ".join(str(f["blocks_done"]) for f in found)
    return Claim("llm_resume", "stories260k", same, wanted, False, f"of {wanted} the same", peer=f"blocks done: {done}")


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    if "--once" in sys.argv:
        torch.set_num_threads(THREADS)
        print(json.dumps(once(Path(sys.argv[-2]), int(sys.argv[-1]))))
    else:
        main("llm_stream", bench)
