"""The demonstration is whole: trained weights, pictures that calibration and judge do not share."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from tersor import demo

FOLDER = Path(demo.__file__).parent


def test_network_reads_digits():
    task = demo.task()
    with torch.no_grad():
        scores = task.evaluate(task.model)
    assert scores.shape == (600,)
    assert scores.mean() >= 0.99
    assert not task.model.training


def test_calibration_and_judge_share_no_picture():
    digits = load_file(FOLDER / "digits.safetensors")
    calibration, test = ({tuple(p.flatten().tolist()) for p in digits[k]} for k in ("calibration", "test"))
    assert len(calibration) == 256
    assert not calibration & test


def test_labels_are_those_of_the_source():
    source = load_digits()
    truth = {tuple(map(int, p.flatten())): int(y) for p, y in zip(source.images, source.target, strict=True)}
    digits = load_file(FOLDER / "digits.safetensors")
    assert [truth[tuple(p.flatten().tolist())] for p in digits["test"]] == digits["labels"].tolist()


def test_enlarging_keeps_mean_and_range():
    pixels = torch.randint(0, 17, (5, 1, 8, 8), dtype=torch.uint8)
    large = demo.enlarge(pixels)
    assert large.shape == (5, 1, 32, 32)
    assert large.min() >= 0
    assert large.max() <= 1
    assert torch.allclose(large.mean(), pixels.float().mean() / 16, atol=0.02)


def test_needs_no_scikit_learn_and_stays_small():
    code = "import sys; from tersor import demo; demo.task(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert sum(f.stat().st_size for f in FOLDER.glob("*.safetensors")) < 700_000
