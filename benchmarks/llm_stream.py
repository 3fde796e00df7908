"""What streaming a language model costs: peak memory of 1.1 B parameters in BF16.

Memory is measured in a process of its own that has imported everything first: what is resident then is the ground,
and the peak of resident memory (VmHWM) above it is the figure.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import THREADS, Claim, Outcome, main, say
from benchmarks.tasks.llm import LARGE, TINY, write_llama


def bench(quick: bool) -> Outcome:
    """Peak memory and minutes of int4-gptq on 1.1 B parameters."""
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as folder:
        return Outcome([_memory(quick, Path(folder), details)], details)


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


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    if "--once" in sys.argv:
        torch.set_num_threads(THREADS)
        print(json.dumps(once(Path(sys.argv[-2]), int(sys.argv[-1]))))
    else:
        main("llm_stream", bench)
