"""Small networks of every kind, and their trainable views."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from parts import conv, flat, task_of
from torch import Tensor, nn

from tersor.engines import engine
from tersor.network.capture import capture
from tersor.network.trainable.build import trainable
from tersor.network.trainable.module import Trainable
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.graph.training.student import student_of
from tersor.pipeline.progress import Stages
from tersor.recipe import Quantization, Recipe, Rule
from tersor.task import Task


class Net(nn.Module):
    """Submodules, and a function of them."""

    def __init__(self, function: Callable, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Words(nn.Module):
    """A block of a Transformer over token ids, with learned positions and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 8, padding_idx=0), nn.Parameter(torch.randn(1, 5, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.drop, self.inner, self.head = nn.Dropout(0.2), nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places
        y = self.norm(x)
        x = x + self.drop(self.attention(y, y, y, need_weights=False)[0])
        return self.head(F.gelu(self.inner(x)))


class Named(nn.Module):
    """Two inputs by name, a nested result."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Any]:
        h = F.relu(self.body(x)) * mask
        return {"b": self.b(h), "more": (self.c(h), h)}


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells, self.head = kind(6, 8, num_layers=2, dropout=0.1, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0])


def frozen() -> nn.Module:
    model = nn.Sequential(conv(3, 4), nn.Conv2d(4, 3, 1))
    model[0][0].weight.requires_grad_(False)
    return model


def odd(m: Net, x: Tensor) -> Tensor:
    """Constants that are made at run time."""
    h = F.relu(m.a(x))
    return m.b(h + torch.arange(8, dtype=torch.float32) + 2 * torch.ones(8) + torch.full((8,), 0.5, device=h.device))


def normed(layer: nn.Module) -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(layer)


def twice(m: Net, x: Tensor) -> Tensor:
    x = F.relu(m.n(m.c(F.relu(m.n(m.c(x))))))
    return F.linear(m.l(x.mean((2, 3))), m.l.weight)


def residual(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(F.relu(x + m.c(m.b(x))).mean((2, 3)))


PICTURE = (3, 8, 8)
NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "chain": lambda: (
        nn.Sequential(conv(3, 4), conv(4, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)), PICTURE
    ),
    "residual": lambda: (
        Net(residual, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8, act=None), head=nn.Linear(8, 4)), PICTURE
    ),
    "depthwise and grouped": lambda: (
        nn.Sequential(conv(3, 4), conv(4, 4, groups=4), conv(4, 8, 1), conv(8, 8, groups=2)), PICTURE
    ),
    "transposed": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 3, 1),
        ),
        PICTURE,
    ),
    "linear": lambda: (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "norm first": lambda: (
        nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 4, 3)
        ),
        PICTURE,
    ),
    "shared": lambda: (
        Net(twice, c=nn.Conv2d(3, 3, 3, padding=1), n=nn.BatchNorm2d(3), l=nn.Linear(3, 3)), PICTURE
    ),
    "shared norm": lambda: (
        Net(
            lambda m, x: F.relu(m.n(m.d(F.relu(m.n(m.c(x)))))),
            c=nn.Conv2d(3, 3, 3), d=nn.Conv2d(3, 3, 3), n=nn.BatchNorm2d(3),
        ),
        PICTURE,
    ),
    "cumulative": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.BatchNorm2d(4, momentum=None),
            nn.Conv2d(4, 4, 1),
        ),
        PICTURE,
    ),
    "frozen": lambda: (frozen(), PICTURE),
    "encoder": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)), (5, 8)
    ),
    "words": lambda: (Words(), (5,)),
    "named": lambda: (Named(), (6,)),
    "lstm": lambda: (Recurrent(nn.LSTM), (5, 6)),
    "gru": lambda: (Recurrent(nn.GRU), (5, 6)),
    "constants": lambda: (Net(odd, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), (6,)),
    "weight norm": lambda: (
        nn.Sequential(
            normed(nn.Conv2d(3, 4, 3, bias=False)), nn.BatchNorm2d(4), nn.ReLU(), normed(nn.Conv2d(4, 3, 1))
        ),
        PICTURE,
    ),
    "fixed batch": lambda: (
        Net(lambda m, x: torch.cat([m.b(F.relu(m.a(row[None]))) for row in x]), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        (6,),
    ),
    "network, 0": lambda: (
        Net(
            lambda m, x: m._modules["0"](F.relu(m.network(x))),
            network=nn.Conv2d(3, 4, 3), **{"0": nn.Conv2d(4, 4, 1)},
        ),
        PICTURE,
    ),
}  # fmt: skip


@cache
def task(name: str) -> Task:
    """A task of that network, with BatchNorms in use."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, shape = NETWORKS[name]()
        momentum = {n: m.momentum for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        if name in ("words", "named"):
            return _task(model.eval(), name)
        if name == "fixed batch":
            made = task_of(model, shape)
            return Task(
                name=name, model=model, example=made.calibration()[0], calibration=made.calibration,
                evaluate=lambda predict: 0.0, metric="none",
            )  # fmt: skip
        made = task_of(model, shape)
    for n, value in momentum.items():
        model.get_submodule(n).momentum = value
    return made


def _task(model: nn.Module, name: str) -> Task:
    batches: Any
    if name == "words":
        batches = [(torch.randint(0, 10, (8, 5)),) for _ in range(3)]
    else:
        batches = [{"x": torch.randn(8, 6), "mask": torch.ones(8, 1)} for _ in range(3)]
    example = {k: v[:1] for k, v in batches[0].items()} if name == "named" else (batches[0][0][:1],)
    return Task(
        name=name, model=model, example=example, calibration=lambda: batches, evaluate=lambda predict: 0.0,
        metric="none",
    )  # fmt: skip


def recipe(weights: str = "int8", activations: str = "uint8", granularity: str = "channel", **rules: str) -> Recipe:
    """Static, without equalization; ``rules``: layers kept in half precision, a dot written as two underscores."""
    return Recipe(
        weights=Quantization(format=weights, granularity=granularity, symmetric=weights == "int8"),
        activations=Quantization(format=activations, symmetric=False),
        bias_correction=False,
        equalize="off",
        rules=tuple(Rule(layer=layer.replace("__", "."), keep=format) for layer, format in rules.items()),
    )


RECIPES = {
    "int8": recipe(),
    "one scale": recipe(granularity="tensor"),
    "int4": recipe("int4", "uint4"),
}


def student(task: Task, recipe: Recipe, quantizers: dict | None = None, **options: bool) -> Trainable:
    """The trainable view of the quantized network."""
    stages = Stages(False)
    subject = start(task, recipe, GraphHost(engine("torch").policy()), stages)
    solved = recipe.steps[0](subject, task, stages).details
    return student_of(task, solved, quantizers or {}, **options)


def unquantized(task: Task) -> Trainable:
    """The trainable view of the float network."""
    network = capture(task.model, task.example)
    norms = ((n, m) for n, m in task.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return trainable(
        network, network, network, lambda *_: None, {n: p.requires_grad for n, p in task.model.named_parameters()},
        cumulative={n: int(m.num_batches_tracked) for n, m in norms if m.momentum is None},
    )  # fmt: skip


def call(model: Any, batch: Any) -> tuple[Tensor, ...]:
    """The results, flat."""
    return flat(model(**batch) if isinstance(batch, dict) else model(*batch))


def loss_of(model: Any, batch: Any) -> Tensor:
    return sum((out.float() - 1).square().mean() for out in call(model, batch))  # type: ignore[return-value]


def step(model: nn.Module, batches: Any, rate: float = 0.01) -> nn.Module:
    """A step of an optimizer for each batch, in training mode."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))
