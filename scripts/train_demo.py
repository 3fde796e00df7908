"""Train the network of the demonstration and write its weights and pictures into the package.

    python scripts/train_demo.py  # about a minute on one core; one machine makes the same files every time

Needs scikit-learn, whose handwritten digits (1,797 pictures of 8x8) are split by chance, but the same chance
every time, into 1,197 to train and 600 to judge.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from tersor.demo import DigitNet, enlarge

FOLDER = Path(__file__).parents[1] / "src/tersor/demo"
EPOCHS, BATCH, RATE = 14, 64, 3e-3


def main() -> None:
    """Train, tell the accuracy of the weights as they are stored, write both files."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(len(digits.images))
    pixels = torch.from_numpy(digits.images).to(torch.uint8)[order].unsqueeze(1)
    labels = torch.from_numpy(digits.target)[order]
    network = train(enlarge(pixels[600:]), labels[600:])

    state = {k: v.half() for k, v in network.state_dict().items()}
    network.load_state_dict({k: v.float() for k, v in state.items()})
    with torch.no_grad():
        right = network.eval()(enlarge(pixels[:600])).argmax(1) == labels[:600]
    print(f"top-1 accuracy {right.float().mean():.4f}")
    save_file(state, FOLDER / "weights.safetensors")
    held = {"calibration": pixels[-256:], "test": pixels[:600], "labels": labels[:600]}
    save_file({k: v.contiguous() for k, v in held.items()}, FOLDER / "digits.safetensors")


def train(pictures: Tensor, labels: Tensor) -> DigitNet:
    """A trained network; AdamW, one cycle of the learning rate, pictures shifted and turned a little."""
    network = DigitNet().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02)
    steps = EPOCHS * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        for numbers in torch.randperm(len(labels)).split(BATCH):
            loss = F.cross_entropy(network(moved(pictures[numbers])), labels[numbers])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}, loss {loss.item():.3f}", flush=True)
    return network


def moved(pictures: Tensor) -> Tensor:
    """Every picture shifted by up to 2 pixels and turned by up to 10 degrees."""
    angle = (torch.rand(len(pictures)) - 0.5) * math.radians(20)
    shift = (torch.rand(len(pictures), 2) - 0.5) * (2 * 2 / 16)
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=1).view(-1, 2, 2)
    grid = F.affine_grid(
        torch.cat((turn, shift.unsqueeze(2)), dim=2), list(pictures.shape), align_corners=False
    )
    return F.grid_sample(pictures, grid, align_corners=False)


if __name__ == "__main__":
    main()
