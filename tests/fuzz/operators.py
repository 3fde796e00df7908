"""Networks of one allowed operator with arguments drawn at random: what is read is run, too."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor.checkpoints.graph.allowed import ATEN, TERSOR, operator_of
from tersor.checkpoints.network import read
from tersor.checkpoints.network import write as save
from tersor.errors import SavedFolderError
from tersor.network.capture import capture

NUMBERS = (0, 1, -1, 2, 3, 4, 5, -2, 7, 8, 100, -100, 10**6, 10**9, 2**31, 2**62, -(2**63))
TEXTS = ("none", "tanh", "constant", "reflect", "mean", "ij->ji", "ii", "...,...", "floor", "same", "\x00", "x" * 300)


class Small(nn.Module):
    """Tensors of several kinds, for operators to read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.arange(16.0).reshape(4, 4))
        self.register_buffer("vector", torch.tensor([0.5, 1e38, -1e30, 0.0]))
        self.register_buffer("indices", torch.tensor([0, 3, 10**9, -(2**62)]))
        self.register_buffer("valid", torch.tensor([[0, 1], [2, 3]]))
        self.register_buffer("codes", torch.tensor([[1, -128], [127, 0]], dtype=torch.int8))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("none", torch.zeros(0, 4))
        self.register_buffer("kernel", torch.ones(2, 3, 1, 1))
        self.register_buffer("complex", torch.ones(4, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> Any:
        return x.relu(), *(b + 0 for b in self.buffers())


def write(folder: Path) -> None:
    save(capture(Small().eval(), (torch.zeros(2, 3, 4, 4),)), folder)


def names() -> list[str]:
    """All allowed operators."""
    found = []
    for space, packets in (("aten", ATEN), ("tersor", TERSOR)):
        for packet in sorted(packets):
            for overload in getattr(getattr(torch.ops, space), packet).overloads():
                text = f"{space}.{packet}.{overload}"
                try:
                    operator_of(text)
                except ValueError:
                    continue
                found.append(text)
    return found


NAMES: list[str] = []


def called(content: bytes, name: str, seed: int) -> bytes:
    """The network with one call of the operator that the seed names."""
    NAMES[:] = NAMES or names()
    draw = random.Random(seed)
    graph = json.loads(content)
    target = NAMES[seed * 7919 % len(NAMES)]
    sources = [n["name"] for n in graph["nodes"] if n["op"] in ("placeholder", "get_attr")]
    place = next(n for n in graph["nodes"] if n["op"] == "call_function")
    graph["nodes"].remove(place)
    schema = operator_of(target)._schema
    args, kwargs = [], {}
    for argument in schema.arguments:
        if argument.has_default_value() and draw.random() < 0.5:
            continue
        kwargs[argument.name] = value = _value(str(argument.type), draw, sources)
        if not argument.kwarg_only and len(args) == len(kwargs) - 1:
            args.append(value)
            kwargs.pop(argument.name)
            kwargs[f"\x00{len(args)}"] = None
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith("\x00")}
    made = {"name": "made", "op": "call_function", "target": target, "args": args, "kwargs": {"dict": kwargs}}
    several = len(schema.returns) > 1 or "[]" in str(schema.returns[0].type) or "List" in str(schema.returns[0].type)
    calls = [made]
    if several:
        got = {"name": "got", "op": "call_function", "target": "operator.getitem", "args": [{"node": "made"}, 0]}
        calls.append(got)
    nodes = [n for n in graph["nodes"] if n["op"] != "call_function" and n["op"] != "output"]
    output = {"name": "output", "op": "output", "args": [[{"node": calls[-1]["name"]}]]}
    graph["nodes"] = [*nodes, *calls, output]
    graph["outputs"] = ["y"]
    return json.dumps(graph).encode()


def _value(kind: str, draw: random.Random, sources: list[str]) -> Any:
    if kind.startswith("Optional[") and draw.random() < 0.3:
        return None
    kind = kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Optional[") else kind
    if kind.startswith("List["):
        inner = kind.removeprefix("List[").removesuffix("]")
        return [_value(inner, draw, sources) for _ in range(draw.choice((0, 1, 2, 2, 2, 3, 4)))]
    if kind == "Tensor":
        return {"node": draw.choice(sources)}
    if kind in ("int", "SymInt"):
        return draw.choice(NUMBERS if draw.random() < 0.3 else NUMBERS[:8])
    if kind in ("float", "number", "Scalar"):
        return draw.choice((0.0, 1.0, -1.0, 0.5, 2, {"float": "nan"}, {"float": "inf"}, 1e300, *NUMBERS[:6]))
    plain = {"bool": (True, False), "str": TEXTS, "ScalarType": ({"dtype": "float32"}, {"dtype": "int8"}, None),
             "Device": ({"device": "cpu"},), "Layout": ({"torch": "strided"},),
             "MemoryFormat": ({"torch": "channels_last"}, {"torch": "contiguous_format"})}  # fmt: skip
    return draw.choice(plain.get(kind, (None,)))


def run(folder: Path) -> None:
    """Read the network and run it on two batches; a kernel may refuse values, but with an error."""
    network = read(folder)
    for x in (torch.zeros(2, 3, 4, 4), torch.randn(3, 3, 4, 4) * 100):
        try:
            network(x)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise SavedFolderError(f"it is read, and its kernel refuses: {error}") from error


