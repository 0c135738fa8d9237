"""Ops made of ops: MLP, self-attention, layernorm with its residual, head with its loss.

Each takes the backend as its first argument; `ReferenceOps` has them as methods. If a backend overrides only `linear_forward`,
every composite here uses its version; one that fuses a whole composite into a kernel overrides that composite alone. The model
cannot tell the difference: a cache is opened only by the backend that made it.
"""

from typing import TYPE_CHECKING

from tensorlite.arrays import Array
from tensorlite.kv_cache import LayerCache
from tensorlite.random import Key

if TYPE_CHECKING:
    from tensorlite.reference.ops import Ops


def mlp_forward(
    ops: "Ops", x: Array, fc_w: Array, fc_b: Array | None, proj_w: Array, proj_b: Array | None, activation: str = "gelu"
) -> tuple[Array, tuple]:
    """y = act(x fc_w + fc_b) proj_w + proj_b

    x: (..., C).
    fc_w: (C, F), with F = 4C in a GPT. fc_b: (F,) or None.
    proj_w: (F, C). proj_b: (C,) or None.
    activation: "gelu" or "relu".
    Returns y: (..., C), and the three caches.
    """
    h, fc_cache = ops.linear_forward(x, fc_w, fc_b)  # (..., C) -> (..., F)
    a, act_cache = ops.activation_forward(h, activation)  # (..., F)
    y, proj_cache = ops.linear_forward(a, proj_w, proj_b)  # (..., F) -> (..., C)
    return y, (fc_cache, activation, act_cache, proj_cache)


def mlp_backward(ops: "Ops", dy: Array, cache: tuple) -> tuple[Array, Array, Array | None, Array, Array | None]:
    """The chain rule, last step first. Returns dx, dfc_w, dfc_b, dproj_w, dproj_b."""
    fc_cache, activation, act_cache, proj_cache = cache
    da, dproj_w, dproj_b = ops.linear_backward(dy, proj_cache)
    dh = ops.activation_backward(da, activation, act_cache)
    dx, dfc_w, dfc_b = ops.linear_backward(dh, fc_cache)
    return dx, dfc_w, dfc_b, dproj_w, dproj_b


def self_attention_forward(
    ops: "Ops",
    x: Array,
    qkv_w: Array,
    qkv_b: Array | None,
    proj_w: Array,
    proj_b: Array | None,
    n_head: int,
    p: float = 0.0,
    key: Key | None = None,
    kv_cache: LayerCache | None = None,
) -> tuple[Array, tuple]:
    """y = attention(x qkv_w + qkv_b) proj_w + proj_b

    x: (B, T, C).
    qkv_w: (C, 3C). qkv_b: (3C,) or None.
    proj_w: (C, C). proj_b: (C,) or None.
    n_head, p, key, kv_cache: as for attention_forward.
    Returns y: (B, T, C), and the three caches.
    """
    qkv, qkv_cache = ops.linear_forward(x, qkv_w, qkv_b)  # (B, T, C) -> (B, T, 3C)
    a, attn_cache = ops.attention_forward(qkv, n_head, p, key, kv_cache)  # (B, T, 3C) -> (B, T, C)
    y, proj_cache = ops.linear_forward(a, proj_w, proj_b)  # (B, T, C) -> (B, T, C)
    return y, (qkv_cache, attn_cache, proj_cache)


def self_attention_backward(ops: "Ops", dy: Array, cache: tuple) -> tuple[Array, Array, Array | None, Array, Array | None]:
    """The chain rule, last step first. Returns dx, dqkv_w, dqkv_b, dproj_w, dproj_b."""
    qkv_cache, attn_cache, proj_cache = cache
    da, dproj_w, dproj_b = ops.linear_backward(dy, proj_cache)
    dqkv = ops.attention_backward(da, attn_cache)
    dx, dqkv_w, dqkv_b = ops.linear_backward(dqkv, qkv_cache)
    return dx, dqkv_w, dqkv_b, dproj_w, dproj_b


def dropout_add_layernorm_forward(
    ops: "Ops", x: Array, y: Array | None, w: Array, b: Array | None, p: float = 0.0, key: Key | None = None
) -> tuple[tuple[Array, Array], tuple]:
    """s = x + dropout(y),  h = layernorm(s): end one branch of a block and begin the next.

    x: (B, ..., C).
    y: (B, ..., C), what the branch returned, or None where no branch ends. Then s = x.
    w: (C,). b: (C,) or None.
    p, key: dropout on y.
    Returns (s, h), both of x's shape, and the two caches.
    """
    s, residual_cache = x, None
    if y is not None:
        s, residual_cache = ops.residual_forward(x, y, p, key)
    h, norm_cache = ops.layernorm_forward(s, w, b)
    return (s, h), (y is not None, residual_cache, norm_cache)


def dropout_add_layernorm_backward(
    ops: "Ops", dout: tuple[Array | None, Array], cache: tuple
) -> tuple[Array, Array | None, Array, Array | None]:
    """The chain rule, last step first. s is used twice, by the layernorm and by what follows, so its two gradients add.

    dout: ds and dh. ds is None where only the layernorm uses s.
    Returns dx, dy, dw, db. dy is None where y was None.
    """
    ds, dh = dout
    has_branch, residual_cache, norm_cache = cache
    ds_norm, dw, db = ops.layernorm_backward(dh, norm_cache)
    ds = ds_norm if ds is None else ops.add(ds, ds_norm)
    dx, dy = ops.residual_backward(ds, residual_cache) if has_branch else (ds, None)
    return dx, dy, dw, db


def linear_cross_entropy_forward(ops: "Ops", x: Array, w: Array, b: Array | None, targets: Array) -> tuple[Array, tuple]:
    """loss = cross_entropy(x w + b, targets)

    x: (..., C).
    w: (C, V). b: (V,) or None.
    targets: (...) integers in [0, V).
    Returns the loss, a scalar in nats, and the two caches.
    """
    logits, linear_cache = ops.linear_forward(x, w, b)  # (..., C) -> (..., V)
    loss, xent_cache = ops.cross_entropy_forward(logits, targets)  # (..., V) -> ()
    return loss, (linear_cache, xent_cache)


def linear_cross_entropy_backward(ops: "Ops", dloss: Array | float, cache: tuple) -> tuple[Array, Array, Array | None]:
    """The chain rule, last step first. Returns dx, dw, db."""
    linear_cache, xent_cache = cache
    dlogits = ops.cross_entropy_backward(dloss, xent_cache)
    dx, dw, db = ops.linear_backward(dlogits, linear_cache)
    return dx, dw, db
