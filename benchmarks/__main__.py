"""`python -m benchmarks [--quick] [name …]`: run the benches one after another, then write the table."""

import subprocess
import sys

from benchmarks import table

# Speed first, while the machine is cool; minutes on two cores with AVX-512 VNNI.
BENCHES = {
    "speed_openvino": 4,
    "speed_onnxruntime": 4,
    "speed_transformers": 5,
    "speed_recurrent": 1,
    "decode_llm": 4,
    "gptq_time": 1,
    "calibration_cost": 4,
    "compress_time": 6,
    "quantize_cost": 3,
    "startup": 1,
    "audit": 5,
    "architectures": 1,
    "per_tensor": 6,
    "exactobs_time": 1,
    "prune_resnet": 5,
    "prune_channels": 6,
    "prune_speed": 12,
    "prune_architectures": 9,
    "gptq_minilm": 3,
    "llm_accuracy": 12,
    "train_llm": 20,
    "prune_llm": 8,
    "llm_sparse": 8,
    "llm_stream": 23,
    "llm_resume": 2,
    "accuracy_dynamic": 3,
    "accuracy_transformers": 7,
    "accuracy_cifar": 6,
    "accuracy_imagenet": 25,
    "trained_cifar": 0,  # reads what `make bench-long` measured
}


def main(arguments: list[str]) -> int:
    """Each in a process of its own, out of the others' leavings; 1 where one failed to run."""
    options = [a for a in arguments if a.startswith("-")]
    names = [a for a in arguments if a in BENCHES] or list(BENCHES)
    unknown = [a for a in arguments if not a.startswith("-") and a not in BENCHES]
    if unknown:
        print(f"no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    print(f"about {sum(BENCHES[n] for n in names)} minutes on two idle cores", file=sys.stderr, flush=True)
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode:
            failed.append(name)
    if "--quick" not in options:
        table.main()
    if failed:
        print(f"failed to run: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
