"""Rewrite pools that round their output size up, so that OpenVINO computes them in integers.

OpenVINO's integer kernels do not support ``ceil_mode``: such a pool, and the layer after it, fall back to float.
Padding the end by the overhang of the last window gives the same values.
"""

from typing import Any


def plain_pools(model: Any) -> None:
    """Replace pools with ``ceil_mode`` by padded pools, if their spatial size is known."""
    for op in model.get_ordered_ops():
        kind, attributes = op.get_type_name(), op.get_attributes()
        if kind in ("MaxPool", "AvgPool") and attributes.get("rounding_type") == "ceil_torch":
            ends = _padded_ends(op, attributes, attributes.get("dilations"))
            if ends is not None:
                _replace(op, kind, attributes, ends)


def _padded_ends(op: Any, attributes: dict[str, Any], dilations: list[int] | None) -> list[int] | None:
    """Padding at the end with which rounding down gives the same size, or None if the size is unknown."""
    before, after = op.input(0).get_partial_shape(), op.output(0).get_partial_shape()
    ends = []
    for k, kernel in enumerate(attributes["kernel"]):
        if before[k + 2].is_dynamic or after[k + 2].is_dynamic:
            return None
        window = (kernel - 1) * (dilations[k] if dilations else 1) + 1
        reach = (after[k + 2].get_length() - 1) * attributes["strides"][k] + window
        known = before[k + 2].get_length() + attributes["pads_begin"][k]
        ends.append(max(attributes["pads_end"][k], reach - known))
    return ends


def _replace(op: Any, kind: str, attributes: dict[str, Any], ends: list[int]) -> None:
    from openvino import opset13 as ops

    source, begins, strides = op.input_value(0), attributes["pads_begin"], attributes["strides"]
    kernel, dilations = attributes["kernel"], attributes.get("dilations")
    if kind == "MaxPool":
        if op.output(1).get_target_inputs():
            return
        new = ops.max_pool(source, strides, dilations, begins, ends, kernel, "floor", "explicit")
    elif not any(begins) and not any(attributes["pads_end"]):
        # Exclude padding from the average: the overhang must not count, and there is no other padding.
        new = ops.avg_pool(source, strides, begins, ends, kernel, True, "floor", "explicit")
    elif ends == attributes["pads_end"]:
        new = ops.avg_pool(source, strides, begins, ends, kernel, attributes["exclude-pad"], "floor", "explicit")
    else:
        return
    new.set_friendly_name(op.get_friendly_name())
    op.output(0).replace(new.output(0))
