"""The content of network.json as pydantic models, and the requirements on the tensors beside it."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from torch import fx

from tersor.checkpoints.sparse.storage import STORAGES, check
from tersor.numerics.packing import packed_bytes

# Total bytes of all inputs of the example.
MAX_INPUTS = 1 << 30
MAX_NODES = 200_000
# Follows the name of a tensor that is stored without zeros: where its values belong. No name of a tensor has a colon.
PLACES = ":places"

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.complex64, torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        torch.uint16, torch.uint32, torch.uint64, torch.bool,
    )
}  # fmt: skip
# Attributes of a GraphModule, which a tensor with that name would replace.
_TAKEN = frozenset(dir(fx.GraphModule({}, fx.Graph())))


def _dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name[:100]!r}")
    return name


def _storage(name: str) -> str:
    if name not in STORAGES:
        raise ValueError(f"no storage {name[:100]!r}; known are {', '.join(STORAGES)}")
    return name


def _free(name: str) -> str:
    if name.split(".")[0] in _TAKEN or any(part.startswith("__") for part in name.split(".")):
        raise ValueError(f"a tensor cannot have the name {name!r}")
    return name


# Names are inserted into generated code, so only identifiers may pass.
Identifier = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=1000)]
Name = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=1000), AfterValidator(_free)]
Dtype = Annotated[StrictStr, AfterValidator(_dtype)]
Sparse = Annotated[StrictStr, AfterValidator(_storage)]
Size = Annotated[StrictInt, Field(ge=0, lt=1 << 48)]
Shape = Annotated[list[Size], Field(max_length=64)]


Stored = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor of a safetensors file."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Input(_Part):
    """An input of the network."""

    name: Annotated[StrictStr, Field(max_length=1000)]
    shape: Shape
    dtype: Dtype


class Layout(_Part):
    """A tensor in memory; its file packs codes of fewer ``bits`` than 8, and omits zeros as ``sparse`` says."""

    shape: Shape
    dtype: Dtype
    bits: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    sparse: Sparse | None = None

    @property
    def packed_bits(self) -> int:
        """The bits of its codes in the file; 8: they are not packed."""
        return 8 if self.bits is None else min(self.bits, 8)

    def check(self, name: str, stored: Stored) -> None:
        """Compare it with the file; raises ValueError."""
        count, dtype = math.prod(self.shape), DTYPES[self.dtype]
        shape = tuple(self.shape)
        if self.packed_bits < 8:
            if dtype not in (torch.int8, torch.uint8):
                raise ValueError(f"{name} has codes of {self.bits} bits in {self.dtype}")
            shape, dtype = (packed_bytes(count, self.packed_bits),), torch.uint8
        found, kind = stored[name]
        if self.sparse is not None:
            places, mask = stored[name + PLACES]
            if len(found) != 1 or kind != dtype or len(places) != 1 or mask != torch.uint8 or dtype.is_complex:
                raise ValueError(f"{name} is {kind} {list(found)} with places {mask} {list(places)} in the file")
            try:
                check(self.sparse, found[0], places[0], count, self.packed_bits)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        elif (found, kind) != (shape, dtype):
            raise ValueError(f"{name} is {kind} {list(found)} in the file, not {dtype} {list(shape)}")


class Meta(BaseModel):
    """Notes of a node that are saved."""

    model_config = ConfigDict(extra="forbid")

    title: StrictStr | None = None
    quantizer: StrictBool | StrictStr | None = None
    bits: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    half: StrictStr | None = None
    float: StrictBool | None = None


class Node(_Part):
    """A node of the graph; ``args`` and ``kwargs`` are checked against the operator when it is called."""

    name: Identifier
    op: Literal["placeholder", "get_attr", "call_function", "output"]
    target: Annotated[StrictStr, Field(max_length=1000)] | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    meta: Meta = Meta()


class Graph(_Part):
    """A network.json."""

    format: Literal[1, 2]
    inputs: Annotated[list[Input], Field(max_length=10_000)]
    outputs: Annotated[list[StrictStr], Field(max_length=10_000)]
    keywords: StrictBool
    dynamic_batch: StrictBool
    free: list[dict[StrictStr, StrictStr]] = []
    tensors: dict[Name, Layout]
    nodes: Annotated[list[Node], Field(max_length=MAX_NODES)]


def check_stored(graph: Graph, stored: Stored) -> None:
    """Compare the tensors described in network.json with those in the file, and the inputs with MAX_INPUTS.

    Raises:
        ValueError: they differ, or the inputs are too large.
    """
    expected = {*graph.tensors, *(name + PLACES for name, layout in graph.tensors.items() if layout.sparse)}
    if odd := sorted(expected ^ set(stored)):
        raise ValueError(f"the tensors {', '.join(odd[:3])} are in one of the two files only")
    for name, layout in graph.tensors.items():
        layout.check(name, stored)
    size = sum(math.prod(i.shape) * DTYPES[i.dtype].itemsize for i in graph.inputs)
    if size > MAX_INPUTS:
        raise ValueError(f"the inputs have {size} bytes, more than {MAX_INPUTS >> 20} MiB, which a saved example has")


def same_inputs(graph: Graph) -> bool:
    """Whether there are as many placeholders as inputs, and as many lists of free sizes."""
    count = sum(node.op == "placeholder" for node in graph.nodes)
    return count == len(graph.inputs) and len(graph.free) in (0, count)


