"""Split batches into cache-sized chunks, and process each chunk on its own core.

One thread per chunk is faster than all threads on one operator: small operators do not wait for each other, and
single-threaded work (counting, most of Python) runs in parallel. Convolutions are faster with channels last in memory.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from tersor.network.network import Network, aten, call, op_name, walk, weight_position
from tersor.task import batch_size

_CHUNK = 2**24  # bytes of a chunk's largest value; glibc maps and clears memory anew above twice this size
_WORKERS = 8  # more would hold more values in memory
_LAID_OUT = (aten.conv2d.default, aten.conv2d.padding)

Inputs = tuple[Any, ...]
Item = TypeVar("Item")
Result = TypeVar("Result")


def cut(network: Network, inputs: Inputs, first: int = 0) -> list[Inputs]:
    """Split a batch into chunks, with a boundary after ``first`` samples; one chunk if the network fixes its batch."""
    if not network.dynamic_batch:
        return [inputs]
    count = batch_size(inputs)
    size = max(1, _CHUNK // largest_value(network))
    starts = sorted({0, *range(0, min(first, count), size), *range(min(first, count), count, size)})
    ends = [*starts[1:], count]
    return [tuple(x[a:b] if x.ndim else x for x in inputs) for a, b in zip(starts, ends, strict=True)]


def channels_last(network: Network) -> dict[str, Tensor]:
    """The weights of the network's 2-d convolutions with channels last in memory, by name, for ``walk``.

    A convolution with such a weight also returns its values in that layout, which saves the copies into and out of the
    layout of its kernels. Sums are added in another order. A network that reads its values' strides gets no such
    weights.

    >>> from tersor.network.capture import capture
    >>> network = capture(torch.nn.Conv2d(2, 3, 3).eval(), (torch.zeros(1, 2, 5, 5),))
    >>> {name: weight.stride() for name, weight in channels_last(network).items()}
    {'weight': (18, 1, 6, 2)}
    """
    found: dict[str, Tensor] = {}
    for node in network.operators():
        if op_name(node) == "as_strided":
            return {}
        if node.target in _LAID_OUT and (source := _stored(node.args[weight_position(node)])) is not None:
            found[str(source.target)] = network.tensor(source).contiguous(memory_format=torch.channels_last)
    return found


def _stored(weight: object) -> fx.Node | None:
    """The node of a weight's tensor, or of its codes."""
    if isinstance(weight, fx.Node) and op_name(weight) == "dequantize":
        weight = weight.args[0]
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def largest_value(network: Network) -> int:
    """Bytes per sample of the network's largest value, from the traced shapes."""
    return max((bytes_of_sample(n.meta.get("val")) for n in network.operators()), default=1)


def bytes_of_sample(value: Any) -> int:
    """Bytes of one sample of a traced value; 1 for anything but a tensor."""
    if not isinstance(value, Tensor):
        return 1
    size = value.element_size()
    for dim in value.shape[1:]:
        size *= dim if isinstance(dim, int) else 1
    return max(1, size)


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """A pool of at most 8 workers that share PyTorch's threads."""
    threads = torch.get_num_threads()
    count = min(threads, _WORKERS)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # MKL's thread count is not per thread


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Callable[[], Result]]]:
    """Yield each item with a function that returns its result or raises its error, in order, a few in parallel."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > pool._max_workers:
            done, future = waiting.popleft()
            yield done, future.result
    for done, future in waiting:
        yield done, future.result


class Chunks(list[Any]):
    """The values of one node for all chunks of a batch."""


def walk_together(
    network: Network,
    chunks: list[Inputs],
    pool: ThreadPoolExecutor,
    visit: Callable[[fx.Node, Chunks], Chunks | None],
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Run all chunks node by node: ``visit`` gets a node's values for all chunks before the next node runs.

    Its result, unless None, replaces the values. Nodes that do not depend on the inputs run once and are not visited.
    ``tensors`` as in ``walk``.
    """

    def run(node: fx.Node, args: Any, kwargs: Any) -> Any:
        if not any(isinstance(a, Chunks) for a in _leaves((args, kwargs))):
            return call(node, args, kwargs)

        def run_chunk(k: int) -> Any:
            a, kw = _pick((args, kwargs), k)
            with torch.no_grad():  # the mode is per thread
                return call(node, a, kw)

        return Chunks(pool.map(run_chunk, range(len(chunks))))

    def visit_chunks(node: fx.Node, value: Any) -> Any:
        return visit(node, value) if isinstance(value, Chunks) else None

    walk(network, tuple(map(Chunks, zip(*chunks, strict=True))), visit_chunks, run, tensors)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)) and not isinstance(value, Chunks):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _pick(value: Any, k: int) -> Any:
    if isinstance(value, Chunks):
        return value[k]
    if isinstance(value, (tuple, list)):
        return type(value)(_pick(v, k) for v in value)
    if isinstance(value, dict):
        return {key: _pick(v, k) for key, v in value.items()}
    return value
