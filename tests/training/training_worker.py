"""What tests run in processes of their own: a training, resumed from a folder, by several processes, or with an error.

Its arguments: a folder, the rows of a batch, and the epoch and rank in which the loss raises, or -1.
"""

import json
import os
import random
import sys
from pathlib import Path

import torch
from training.tiny_tasks import entropy, finetune, pairs, recipe, tensors_of, tiny_net, tiny_task

from tersor.training.state import digest


def shuffled(rows: int):
    """The same 96 pictures for each number of rows, in a new order in each epoch."""
    x, y = (torch.cat(parts) for parts in zip(*pairs(12), strict=True))
    order = list(range(len(x)))
    random.shuffle(order)
    for rows_of in torch.tensor(order).split(rows):
        yield x[rows_of], y[rows_of]


def work(folder: Path, rows: int, wrong: int) -> None:
    """Train, and write what came out."""
    torch.set_num_threads(1)
    rank, calls = int(os.environ.get("RANK", "0")), []

    def loss(model, batch):
        calls.append(1)
        if rank == wrong and len(calls) == 4:
            raise ValueError("an error of one rank")
        return entropy(model, batch)

    # BatchNorm's statistics are those of the rows of one process, so a network without it is compared.
    net = tiny_net(norm=rows == 8)
    steps = recipe(epochs=4, average=0.5 if rows == 8 else None, warmup=0.3)
    done = finetune(tiny_task(net, train=lambda: shuffled(rows), loss=loss), steps, folder=folder)
    found = tensors_of(done)
    (record,) = done.subject.trainings
    scales = {n: t.flatten().tolist() for n, t in found.items() if "scale" in n}
    result = {
        "digest": digest(found), "scales": scales, "losses": [e.loss for e in record.history.epochs],
        "held out": [e.held_out for e in record.history.epochs], "after": record.after,
    }
    (folder / f"result-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
