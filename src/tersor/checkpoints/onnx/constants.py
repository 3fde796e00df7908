"""Constants of an ONNX graph: equal tensors are stored once, scales have ONNX's shapes."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Constants:
    """The initializers of a graph that is being rewritten.

    Args:
        graph: the graph in which they are registered.
        stored: the values so far, by dtype, shape and content.
    """

    graph: ir.Graph
    stored: dict[Any, ir.Value] = field(default_factory=dict)

    def value(self, array: np.ndarray, name: str) -> ir.Value:
        """The value that holds ``array``; a new one is called ``name``, with underscores appended if that is taken."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.stored:
            taken = {v.name for v in self.stored.values()}
            while name in taken:
                name += "_"
            # Drop the exporter's tensor of that name, whose reader is being replaced.
            self.graph.initializers.pop(name, None)
            tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            self.stored[key] = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
            self.graph.register_initializer(self.stored[key])
        return self.stored[key]

    def parameters(
        self,
        name: str,
        scale: np.ndarray,
        zero_point: np.ndarray,
        shape: tuple[int, ...],
        block: int,
        kind: Any,
    ) -> tuple[list[ir.Value], dict[str, Any]]:
        """Scale and zero point (of dtype ``kind``) for a tensor of ``shape``, and ONNX's attributes for them.

        Raises:
            ValueError: ONNX cannot express the granularity.
        """
        steps, attributes = to_onnx_layout(scale, shape, block)
        zeros = zero_point if zero_point.size > 1 else np.broadcast_to(zero_point.reshape(()), scale.shape)
        zeros, _ = to_onnx_layout(np.ascontiguousarray(zeros), shape, block)
        zeros = np.broadcast_to(zeros, steps.shape).astype(kind)
        values = [
            self.value(steps.astype(np.float32), f"{name}.scale"),
            self.value(zeros, f"{name}.zero_point"),
        ]
        return values, attributes


def to_onnx_layout(t: np.ndarray, shape: tuple[int, ...], block: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Convert a scale from the shape convention of ``numerics`` to ONNX's; returns it with the node attributes.

    The result is a scalar, a vector along one axis (block scales are repeated), or, with two varying axes, one scale
    for each block of the second. ONNX has no partial last block: smaller blocks that divide the axis repeat the scale.

    Raises:
        ValueError: any other shape, or no block size divides the axis.

    >>> to_onnx_layout(np.array([[1.0, 2.0], [3.0, 4.0]]), (2, 6), block=4)
    (array([[1., 1., 2.], [3., 3., 4.]]), {'axis': 1, 'block_size': 2})
    >>> to_onnx_layout(np.array([[1.0], [2.0]]), (4, 5), block=2)
    (array([1., 1., 2., 2.]), {'axis': 0})
    """
    many = [k for k, n in enumerate(t.shape) if n > 1]
    if not many:
        return t.reshape(()), {}
    if len(many) == 1:
        axis = many[0]
        if t.shape[axis] != shape[axis]:
            t = np.repeat(t, block, axis).take(range(shape[axis]), axis)
        return t.reshape(-1), {"axis": axis}
    blocked = [k for k in many if t.shape[k] != shape[k]]
    axis, divisor = (blocked[0], math.gcd(block, shape[blocked[0]])) if len(blocked) == 1 else (0, 1)
    if divisor < 2 or t.shape[axis] != -(-shape[axis] // block):
        raise ValueError(
            f"ONNX has no scales of shape {tuple(t.shape)} over {tuple(shape)} in groups of {block}"
        )
    t = np.repeat(t, block // divisor, axis).take(range(shape[axis] // divisor), axis)
    whole = [t.shape[k] if k == axis else n for k, n in enumerate(shape)]
    return np.broadcast_to(t, whole), {"axis": axis, "block_size": divisor}
