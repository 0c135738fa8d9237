"""Composites that this backend fuses: GELU into a GEMM, the loss over a padded vocabulary.

They replace mlp and linear_cross_entropy of tensorlite/reference/composites.py.
"""

from typing import TYPE_CHECKING, NamedTuple

from tensorlite.arrays import Array, array_namespace
from tensorlite.cuda.cross_entropy import gradient, mean_loss
from tensorlite.cuda.layout import pad_columns, whole_tiles
from tensorlite.cuda.linear import padded_backward, weight_gradients
from tensorlite.cuda.reduce import known_sums
from tensorlite.reference import composites
from tensorlite.reference.cross_entropy import check_cross_entropy
from tensorlite.reference.indices import check_indices
from tensorlite.reference.linear import check_linear

if TYPE_CHECKING:
    from tensorlite.cuda.ops import CUDAOps


class FusedMLPCache(NamedTuple):
    """What mlp_backward reads of mlp_forward, where GELU is fused into the first GEMM."""

    x: Array
    fc_w: Array
    has_fc_bias: bool
    h: Array  # (N, F), the pre-activation
    a: Array  # (..., F), gelu(h)
    proj_w: Array
    has_proj_bias: bool


class LinearCrossEntropyCache(NamedTuple):
    """What linear_cross_entropy_backward reads of linear_cross_entropy_forward."""

    x: Array
    w: Array  # (C, padded vocabulary)
    has_bias: bool
    V: int  # the vocabulary without its padding
    logits: Array  # (N, padded vocabulary), float32
    targets: Array
    lse: Array  # (N,), float32


def mlp_forward(
    ops: "CUDAOps", x: Array, fc_w: Array, fc_b: Array | None, proj_w: Array, proj_b: Array | None, activation: str = "gelu"
) -> tuple[Array, tuple]:
    """y = gelu(x fc_w + fc_b) proj_w + proj_b. The first GEMM stores both h, which backward needs, and gelu(h)."""
    if activation != "gelu":
        return composites.mlp_forward(ops, x, fc_w, fc_b, proj_w, proj_b, activation)
    array_namespace(x, fc_w, fc_b, proj_w, proj_b)
    check_linear(x, fc_w, fc_b)
    C, F = fc_w.shape
    x = ops.operand(x)
    fc_w = ops.matrix(fc_w)
    h = ops.empty((x.size // C, F))
    a = ops.empty((*x.shape[:-1], F))
    ops.gemm(x.reshape(-1, C), fc_w, a.reshape(-1, F), bias=ops.vector(fc_b), pre_gelu=h)  # (N, C) @ (C, F)
    y, (a, proj_w, has_proj_bias) = ops.linear_forward(a, proj_w, proj_b)
    return y, FusedMLPCache(x, fc_w, fc_b is not None, h, a, proj_w, has_proj_bias)


def mlp_backward(ops: "CUDAOps", dy: Array, cache: tuple) -> tuple[Array, Array, Array | None, Array, Array | None]:
    """The chain rule. The GEMM that computes da = dy proj_w^T stores dh = gelu_backward(da) instead."""
    if not isinstance(cache, FusedMLPCache):
        return composites.mlp_backward(ops, dy, cache)
    x, fc_w, has_fc_bias, h, a, proj_w, has_proj_bias = cache
    array_namespace(dy, a)
    F, C = proj_w.shape
    known_dproj_b = known_sums(ops, dy)
    dy = ops.gradient(dy, (*a.shape[:-1], C), "mlp").reshape(-1, C)
    dh = ops.empty(h.shape)
    dproj_w, dproj_b = weight_gradients(ops, a.reshape(-1, F), dy, has_proj_bias, known_dproj_b)
    ops.gemm(dy, proj_w.T, dh, dgelu_input=h)  # (N, C) @ (C, F)
    dx, dfc_w, dfc_b = padded_backward(ops, dh, x, fc_w, has_fc_bias)
    return dx, dfc_w, dfc_b, dproj_w, dproj_b


def linear_cross_entropy_forward(ops: "CUDAOps", x: Array, w: Array, b: Array | None, targets: Array) -> tuple[Array, tuple]:
    """loss = cross_entropy(x w + b, targets). The vocabulary is padded with zero columns; logits are float32 in any precision."""
    array_namespace(x, w, b, targets)
    check_linear(x, w, b)
    C, V = w.shape
    check_cross_entropy((*x.shape[:-1], V), targets)
    if ops.check:
        check_indices(targets, V, "cross_entropy: targets")
    padded_vocab = whole_tiles(V)
    x = ops.operand(x)
    w = pad_columns(ops, ops.matrix(w), padded_vocab)
    logits = ops.float32(x.size // C, padded_vocab)
    bias = None if b is None else pad_columns(ops, ops.operand(b), padded_vocab, logits.dtype)
    ops.gemm(x.reshape(-1, C), w, logits, bias=bias)  # (N, C) @ (C, padded_vocab)
    loss, lse = mean_loss(ops, logits, V, targets)
    return loss, LinearCrossEntropyCache(x, w, b is not None, V, logits, targets, lse)


def linear_cross_entropy_backward(ops: "CUDAOps", dloss: Array | float, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dlogits = cross_entropy_backward(dloss), then linear_backward. Returns dx, dw and db without the padding."""
    x, w, has_bias, V, logits, targets, lse = cache
    dlogits = gradient(ops, dloss, logits, V, targets, lse, ops.dtype)
    dx, dw, db = padded_backward(ops, dlogits, x, w, has_bias)
    dw = pad_columns(ops, dw, V)
    if db is not None:
        db = db[:V]
    return dx, dw, db
