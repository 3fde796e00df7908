"""A short W4A4 training in a process of its own, to be killed or to run on several: prints what it became."""

import argparse
import json
from pathlib import Path

import torch
from cifar_training import task

import tersor
from benchmarks.training.quantized import Quantized
from benchmarks.training.rows import hits, packed
from tersor.training.state import digest


def main() -> None:
    """Train, and write a JSON file for each process: the digest of all tensors, buffers, scales, hits."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("epochs", "pictures", "batch", "judged"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    own = task(pictures=asked.pictures, batch=asked.batch, judged=asked.judged, held=500)
    recipe = Quantized("w4a4", asked.epochs, 0).made(0)
    done = tersor.finetune(own, recipe, "torch", folder=asked.folder, report=False, progress=False, threads=1)
    assert done.network is not None
    tensors = dict(done.network.tensors())
    scales = {n: t.flatten().tolist() for n, t in tensors.items() if "scale" in n}
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    found = {"digest": digest(tensors), "scales": scales, "hits": packed(hits(own, done.runner, "the result"))}
    asked.out.with_suffix(f".{rank}.json").write_text(json.dumps(found), encoding="utf8")


if __name__ == "__main__":
    main()
