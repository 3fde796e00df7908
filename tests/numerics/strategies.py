"""Draws of specifications and tensors for the property tests."""

import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tersor.numerics import FORMATS, QuantSpec

INTEGERS = [name for name, one in FORMATS.items() if one.kind == "int"]
CODED = [*INTEGERS, "ternary"]
FLOATS = [name for name, one in FORMATS.items() if one.kind == "float"]

granularities = st.one_of(
    st.sampled_from(["tensor", "channel", "channel:1", "channel:-1", "token"]),
    st.integers(1, 5).map("group:{}".format),
    st.integers(1, 5).map("filters:{}".format),
)


@st.composite
def specs(draw, formats=CODED):
    """Any specification of these formats, of tensors with two dimensions or more."""
    name = draw(st.sampled_from(formats))
    symmetric = True if name not in INTEGERS else draw(st.booleans())
    scale_dtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    return QuantSpec(name, draw(granularities), symmetric, scale_dtype=scale_dtype)


@st.composite
def tensors(draw, spec, limit=1e4, least_dims=2):
    """A float32 tensor, small in size and wild in values, that the spec can take."""
    low = -limit if spec.format.signed or not spec.symmetric else 0.0
    # Whole blocks of one value, zero among them, are what hypothesis draws by `fill`.
    values = st.floats(low, limit, width=32, allow_subnormal=False)
    shapes = array_shapes(min_dims=least_dims, max_dims=4, max_side=7)
    return torch.from_numpy(draw(arrays("float32", shapes, elements=values, fill=values)))


@st.composite
def cases(draw, formats=CODED, limit=1e4):
    """A specification and a tensor for it."""
    spec = draw(specs(formats))
    return spec, draw(tensors(spec, limit))
