"""The operators that a saved network may use: those that compute values from tensors, and nothing else.

An operator is allowed by its name, for those of its overloads that write nothing, draw no random numbers and accept
and return only tensors and numbers. The list contains what capture, rewrites and quantization produce, and the
functional operators of ATen that a user's network may call: pointwise, reductions, products, convolutions, pools,
norms, indexing, shapes, padding, recurrences, transforms and decompositions. Excluded are operators that read or
write files, storage or global state, return uninitialized memory, draw random numbers, build sparse, nested or
quantized tensors, take a memory layout from their arguments (``as_strided``), run for a time that no shape bounds, or
return a number of elements that depends on the values of tensors.
"""

import operator
import re
from typing import Any

import torch

# Sorted by name, which a test checks.
ATEN = frozenset(
    """
    __and__ __lshift__ __or__ __rshift__ __xor__
    _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _conj _convolution _embedding_bag _fft_c2c _fft_c2r
    _fft_r2c _fused_rms_norm _log_softmax _native_batch_norm_legit_no_training _prelu_kernel _safe_softmax
    _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy _trilinear _unsafe_index _unsafe_view
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _weight_norm
    abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr adjoint
    affine_grid_generator alias all amax amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2
    arctanh argmax argmin argsort asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d
    avg_pool3d
    baddbmm batch_norm bilinear bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
    block_diag bmm broadcast_tensors broadcast_to bucketize
    cat cdist ceil celu chain_matmul channel_shuffle cholesky cholesky_inverse cholesky_solve chunk clamp clamp_max
    clamp_min clip clone col2im column_stack complex concat concatenate conj conj_physical constant_pad_nd contiguous
    conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution copy copysign cos
    cosh cosine_similarity count_nonzero cov cross cummax cummin cumprod cumsum cumulative_trapezoid
    deg2rad det detach diag diag_embed diagflat diagonal diagonal_scatter diff digamma dist div divide dot dropout
    dsplit dstack
    einsum elu embedding embedding_bag eq equal erf erfc erfinv exp exp2 expand expand_as expm1 eye
    feature_dropout fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift
    fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn fill fix flatten flip fliplr flipud
    float_power floor floor_divide fmax fmin fmod frac frobenius_norm full full_like
    gather gcd ge gelu ger glu greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru
    gru_cell gt
    hardshrink hardsigmoid hardswish hardtanh heaviside hsplit hstack hypot
    i0 im2col imag index index_add index_copy index_fill index_put index_select inner instance_norm inverse isclose
    isfinite isin isinf isnan isneginf isposinf isreal
    kron kthvalue
    layer_norm lcm ldexp le leaky_relu lerp less less_equal lgamma lift_fresh_copy linalg_cholesky linalg_cross
    linalg_det linalg_diagonal linalg_eigh linalg_eigvalsh linalg_inv linalg_matmul linalg_matrix_exp
    linalg_matrix_norm linalg_matrix_power linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet
    linalg_solve linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander
    linalg_vecdot linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_sigmoid_forward log_softmax
    logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit logspace logsumexp
    lstm lstm_cell lt
    mH mT masked_fill matmul matrix_exp matrix_power max max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid
    min minimum mish mm mode moveaxis movedim msort mul multiply mv
    nan_to_num nanmean nanmedian nanquantile nansum narrow narrow_copy native_channel_shuffle native_group_norm
    native_layer_norm ne neg negative new_full new_ones new_zeros nextafter norm not_equal nuclear_norm numpy_T
    one_hot ones ones_like outer
    pad pairwise_distance pdist permute pixel_shuffle pixel_unshuffle polar positive pow prelu prod
    quantile
    rad2deg ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as resolve_conj
    resolve_neg rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round row_stack rsqrt rsub
    scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_scatter
    selu sgn sigmoid sign signbit silu sin sinc sinh slice slice_scatter slogdet softmax softplus softshrink sort
    special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit
    special_expm1 special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
    special_log_softmax special_logit special_logsumexp special_ndtr special_ndtri special_psi special_round
    special_sinc special_softmax special_xlog1py special_xlogy split split_with_sizes sqrt square squeeze stack std
    std_mean stft sub subtract sum sum_to_size svd swapaxes swapdims sym_numel sym_size
    t take take_along_dim tan tanh tensor_split tensordot threshold tile to topk trace transpose trapezoid trapz tril
    tril_indices triu triu_indices true_divide trunc type_as
    unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d
    var var_mean vdot view view_as view_as_complex view_as_real vsplit vstack
    where
    xlogy
    zeros zeros_like
    """.split()
)
TERSOR = frozenset("cast dequantize fake_quantize int8_product quantize_rows quantize_whole".split())
PYTHON = {
    f"operator.{f.__name__}": f
    for f in (
        operator.add,
        operator.floordiv,
        operator.getitem,
        operator.mod,
        operator.mul,
        operator.neg,
        operator.sub,
        operator.truediv,
    )
}
_TYPES = {
    "Tensor", "int", "float", "bool", "str", "number", "Scalar", "SymInt", "ScalarType", "Device", "Layout",
    "MemoryFormat",
}  # fmt: skip
_REMEDY = "if Tersor wrote this file, please report it; or compress for another engine"


def operator_of(text: str) -> Any:
    """The operator of that name.

    Raises:
        ValueError: it is not allowed.

    >>> operator_of("aten.relu.default")
    <OpOverload(op='aten.relu', overload='default')>
    >>> operator_of("aten.empty.memory_format")
    Traceback (most recent call last):
    ValueError: the operator aten.empty.memory_format is not allowed in a saved network: ...
    """
    if text in PYTHON:
        return PYTHON[text]
    namespace, _, rest = text.partition(".")
    name, _, overload = rest.partition(".")
    names = {"aten": ATEN, "tersor": TERSOR}.get(namespace, frozenset())
    packet = getattr(getattr(torch.ops, namespace), name, None) if name in names else None
    if packet is None or overload not in packet.overloads() or not _pure(found := getattr(packet, overload)):
        raise ValueError(f"the operator {text} is not allowed in a saved network: {_REMEDY}")
    return found


def name_of(target: Any) -> str:
    """The name that ``operator_of`` accepts."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"operator.{getattr(target, '__name__', target)}"


def _pure(found: Any) -> bool:
    """Whether an operator writes nothing, draws no random numbers, and accepts and returns plain values."""
    schema = found._schema
    random = torch.Tag.nondeterministic_seeded in found.tags and schema.name not in _EVALUATING
    taken, given = ([str(value.type) for value in values] for values in (schema.arguments, schema.returns))
    tensors = any("Tensor" in kind for kind in taken + given) and not any("str" in kind for kind in given)
    # TorchScript overloads accept a number as dtype.
    scripted = schema.overload_name.startswith("prim")
    return not (schema.is_mutable or random or scripted) and tensors and all(_plain(kind) for kind in taken + given)


# Random only in training, which the argument check rejects.
_EVALUATING = {f"aten::{name}" for name in "dropout feature_dropout scaled_dot_product_attention lstm gru".split()} | {
    f"aten::{name}" for name in ("rnn_tanh", "rnn_relu", "_scaled_dot_product_flash_attention_for_cpu")
}


def _plain(kind: str) -> bool:
    return set(re.sub(r"Optional|List|[\[\]]", " ", kind).split()) <= _TYPES
