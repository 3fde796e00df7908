"""Check that a GPU finds what the CPU finds, and how much sooner: python scripts/check_gpu.py

It takes at most eight minutes. Sums in another order turn weights that lie at the middle of two codes, so a few codes
may differ. Where GPTQ follows the error of earlier layers, as the presets do, such a weight changes what later layers
aim at: many of their codes differ then, at the same error. A bound is stated for each check.

Exit code: 0, all are within their bounds, or there is no GPU; 1, a bound is exceeded.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import tersor
from tersor.arguments import computes_float64
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.measure.environment import device_name
from tersor.numerics import QuantSpec
from tersor.recipe import Quantization
from tersor.solvers import Gptq, LayerProblem
from tersor.solvers.output_error import output_error


@dataclass(frozen=True)
class Row:
    """One check.

    Args:
        what: in words.
        seconds: on the CPU, and on the GPU.
        codes: the share of codes that differ, or None if there are none.
        objective: the relative difference of what is minimized: an output's error, or a loss.
        bounds: the largest allowed values of ``codes`` (None: any) and ``objective``.
    """

    what: str
    seconds: tuple[float, float]
    codes: float | None
    objective: float
    bounds: tuple[float | None, float]

    @property
    def passed(self) -> bool:
        """Whether both are within their bounds; NaN is not."""
        most, off = self.bounds
        return (most is None or self.codes is None or self.codes <= most) and abs(self.objective) <= off

    def __str__(self) -> str:
        before, after = self.seconds
        most, off = self.bounds
        codes = "–" if self.codes is None else f"{self.codes:.3%} ({'any' if most is None else f'≤ {most:.1%}'})"
        objective = f"{self.objective:+.3%} (≤ {off:.1%})"
        words = (self.what, f"{before:.3g}", f"{after:.3g}", f"{before / after:.1f}x", codes, objective)
        return _line(*words, "ok" if self.passed else "FAILED")


# Every layer on its own: none compensates for the error of earlier ones.
ALONE = tersor.Recipe(
    name="alone",
    weights=Quantization(format="int4", granularity="group:32", range="mse", solver={"gptq": {"follow": 0.0}}),
    activations=Quantization(format="fp32"),
    bias_correction=False,
)
HEAD = ("check", "CPU s", "GPU s", "faster", "codes that differ", "objective", "")


def main() -> int:
    """Print the table."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        print("not run: no GPU")
        return 0
    started = time.perf_counter()
    print(f"{device_name(device)}, {torch.get_num_threads()} threads of the CPU, PyTorch {torch.__version__}")
    print(_line(*HEAD))
    passed = True
    for row in checks(device):
        print(row, flush=True)
        passed &= row.passed
    print(f"{time.perf_counter() - started:.0f} s")
    return 0 if passed else 1


def checks(device: torch.device) -> Iterator[Row]:
    """All checks that the device can run."""
    if computes_float64(device):
        layer(device, 256)  # loads the libraries of the GPU
        yield layer(device)
    else:
        print(f"GPTQ alone: not run, {device} has no float64; in a folder, weights are solved on the CPU")
    yield folder(device, ALONE)
    yield folder(device)
    yield training(device)


def layer(device: torch.device, width: int = 4096) -> Row:
    """GPTQ of one square layer at 4 bits in groups of 32, on correlated inputs."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * width, width, generator=draw) @ (torch.randn(width, width, generator=draw) / width**0.5)
    gram, weight = (2 / len(x)) * x.t() @ x, torch.randn(width, width, generator=draw)
    problem = LayerProblem("fc", weight, QuantSpec("int4", "group:32"), gram=gram[None])
    moved = replace(problem, weight=weight.to(device), gram=gram[None].to(device))
    here, cpu = clocked(lambda: Gptq()(problem).qtensor)
    there, gpu = clocked(lambda: Gptq()(moved).qtensor, device)
    there = there.to("cpu")
    first, second = (output_error(weight, q.dequantize(), gram[None]) for q in (here, there))
    differ = float((here.codes != there.codes).float().mean())
    return Row(f"GPTQ, {width} x {width}", (cpu, gpu), differ, second / first - 1, (0.001, 0.001))


def folder(
    device: torch.device,
    recipe: tersor.Recipe | None = None,
    *,
    width: int = 512,
    blocks: int = 4,
    windows: int = 32,
    length: int = 256,
) -> Row:
    """A Llama of random weights, compressed block by block; its objective is the mean error of the layers' outputs.

    None: the recipe ``int4-gptq``, which follows the error of earlier layers.
    """
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        ids = torch.randint(3, 512, (windows, length), generator=torch.Generator().manual_seed(1))
        _write_llama(source, width, blocks, length)

        def run(name: str, on: torch.device | None) -> tuple[Any, float]:
            out = Path(place) / name
            options = {"device": on, "progress": False}
            return clocked(lambda: tersor.compress_folder(source, out, recipe or "int4-gptq", ids, **options), on)

        (here, cpu), (there, gpu) = run("here", None), run("there", device)
        first, second = (sum(w.error for w in r.report.weights if w.error is not None) for r in (here, there))
        ours, theirs = (QuantizedFolder(Path(place) / name) for name in ("here", "there"))
        pairs = [(ours.qtensor(n).codes, theirs.qtensor(n).codes) for n in sorted(ours.quantized)]
    differ = sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    what = f"{blocks} blocks of width {width}" + ("" if recipe is None else ", each on its own")
    return Row(what, (cpu, gpu), differ, second / first - 1, (None, 0.01) if recipe is None else (0.001, 0.001))


def training(device: torch.device, size: int = 32, batch: int = 128, steps: int = 20) -> Row:
    """A step of quantization-aware training of a small CNN; its objective is the loss of the first batch."""
    draw = torch.Generator().manual_seed(0)
    pictures, labels = torch.randn(batch, 3, size, size, generator=draw), torch.randint(10, (batch,), generator=draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = tersor.Task("cnn", _cnn().eval(), (pictures[:1],), lambda: [(pictures,)])
    found = [_trained(task, pictures.to(d), labels.to(d), steps) for d in (torch.device("cpu"), device)]
    (first, cpu), (second, gpu) = found
    return Row(f"training step, batch {batch}", (cpu, gpu), None, second / first - 1, (0.0, 0.001))


def _trained(task: tersor.Task, pictures: Tensor, labels: Tensor, steps: int) -> tuple[float, float]:
    """The first loss, and the median seconds of a step, without the first three."""
    student = tersor.trainable(task, recipe="int4-qat", engine="torch", progress=False).to(pictures.device).train()
    optimizer, losses, times = torch.optim.SGD(student.parameters(), lr=0.01), [], []

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(student(pictures), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    for _ in range(steps):
        loss, seconds = clocked(step, pictures.device)
        losses.append(loss)
        times.append(seconds)
    return losses[0], median(times[3:] or times)


def _cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def _write_llama(path: Path, width: int, blocks: int, length: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=blocks,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=length,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)


def clocked(call: Callable[[], Any], device: torch.device | None = None) -> tuple[Any, float]:
    """The result and its seconds; what a GPU has still to do is waited for, before and after."""
    def wait() -> None:
        if device is not None and device.type != "cpu":
            torch.accelerator.synchronize(device)

    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return result, time.perf_counter() - start


def _line(*words: str) -> str:
    widths = (34, 8, 8, 8, 22, 20, 0)
    return "  ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
