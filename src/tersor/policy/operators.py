"""Operator types by their role in quantization."""

LAYERS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"}
)
ARITHMETIC = frozenset({"add", "mul"})
AVERAGES = frozenset({"mean", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"})
# They join several values into one.
JOINS = frozenset({"cat", "concat", "stack"})
# They move or select values without changing them.
MOVES = frozenset(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d pad constant_pad_nd reshape view flatten unflatten squeeze "
    "unsqueeze permute transpose t slice select dropout contiguous clone expand repeat getitem split chunk "
    "split_with_sizes upsample_nearest2d pixel_shuffle pixel_unshuffle channel_shuffle roll index_select narrow "
    "movedim swapaxes amax amin".split()
)
TRANSPARENT = MOVES | JOINS
ACTIVATIONS = frozenset(
    "relu relu6 hardtanh clamp clamp_min leaky_relu hardswish hardsigmoid silu gelu sigmoid tanh elu prelu mish".split()
)
