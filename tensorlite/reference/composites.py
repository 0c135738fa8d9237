"""Ops made of ops. Each takes the backend as its first argument; `ReferenceOps` has them as methods.

A backend that overrides only `linear_forward` is felt in every composite here; one that fuses a whole composite into a kernel
overrides that composite alone. The model cannot tell the difference: a cache is opened only by the backend that made it.
"""

from typing import Any

from tensorlite.arrays import Array
from tensorlite.random import Key
from tensorlite.reference.attention import LayerCache

Ops = Any  # a ReferenceOps, or anything with its methods


def mlp_forward(
    ops: Ops, x: Array, fc_w: Array, fc_b: Array | None, proj_w: Array, proj_b: Array | None, activation: str = "gelu"
) -> tuple[Array, tuple]:
    """y = act(x fc_w + fc_b) proj_w + proj_b

    x: (..., C). fc_w: (C, F), F = 4C in a GPT. fc_b: (F,) or None. proj_w: (F, C). proj_b: (C,) or None.
    activation: "gelu" or "relu".
    Returns y: (..., C), and the three caches.
    """
    h, fc = ops.linear_forward(x, fc_w, fc_b)  # (..., C) -> (..., F)
    a, act = ops.activation_forward(h, activation)  # (..., F)
    y, proj = ops.linear_forward(a, proj_w, proj_b)  # (..., F) -> (..., C)
    return y, (fc, activation, act, proj)


def mlp_backward(ops: Ops, dy: Array, cache: tuple) -> tuple[Array, Array, Array | None, Array, Array | None]:
    """The chain rule, last step first. Returns dx, dfc_w, dfc_b, dproj_w, dproj_b."""
    fc, activation, act, proj = cache
    da, dproj_w, dproj_b = ops.linear_backward(dy, proj)
    dh = ops.activation_backward(da, activation, act)
    dx, dfc_w, dfc_b = ops.linear_backward(dh, fc)
    return dx, dfc_w, dfc_b, dproj_w, dproj_b


def self_attention_forward(
    ops: Ops,
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

    x: (B, T, C). qkv_w: (C, 3C). qkv_b: (3C,) or None. proj_w: (C, C). proj_b: (C,) or None. The rest: see attention_forward.
    Returns y: (B, T, C), and the three caches.
    """
    h, qkv = ops.linear_forward(x, qkv_w, qkv_b)  # (B, T, C) -> (B, T, 3C)
    a, att = ops.attention_forward(h, n_head, p, key, kv_cache)  # (B, T, 3C) -> (B, T, C)
    y, proj = ops.linear_forward(a, proj_w, proj_b)  # (B, T, C) -> (B, T, C)
    return y, (qkv, att, proj)


def self_attention_backward(ops: Ops, dy: Array, cache: tuple) -> tuple[Array, Array, Array | None, Array, Array | None]:
    """The chain rule, last step first. Returns dx, dqkv_w, dqkv_b, dproj_w, dproj_b."""
    qkv, att, proj = cache
    da, dproj_w, dproj_b = ops.linear_backward(dy, proj)
    dh = ops.attention_backward(da, att)
    dx, dqkv_w, dqkv_b = ops.linear_backward(dh, qkv)
    return dx, dqkv_w, dqkv_b, dproj_w, dproj_b


def prenorm_layernorm_forward(ops: Ops, x: Array, w: Array, b: Array | None) -> tuple[tuple[Array, Array], tuple]:
    """x goes on as it is, and h = layernorm(x): begin a branch of a block.

    x: (..., C). w: (C,). b: (C,) or None.
    Returns (x, h), both of x's shape, and layernorm's cache.
    """
    h, norm = ops.layernorm_forward(x, w, b)
    return (x, h), norm


def prenorm_layernorm_backward(ops: Ops, dout: tuple[Array, Array], cache: tuple) -> tuple[Array, Array, Array | None]:
    """x is used twice, by the layernorm and by whoever took it from here, so its two gradients add. Returns dx, dw, db."""
    dx, dh = dout
    dx_norm, dw, db = ops.layernorm_backward(dh, cache)
    return ops.add(dx, dx_norm), dw, db


def dropout_add_layernorm_forward(
    ops: Ops, x: Array, y: Array, w: Array, b: Array | None, p: float = 0.0, key: Key | None = None
) -> tuple[tuple[Array, Array], tuple]:
    """s = x + dropout(y),  h = layernorm(s): end one branch of a block and begin the next.

    x, y: (B, ..., C). w: (C,). b: (C,) or None. p, key: dropout on y.
    Returns (s, h), both of x's shape, and the two caches.
    """
    s, residual = ops.residual_forward(x, y, p, key)
    out, norm = ops.prenorm_layernorm_forward(s, w, b)
    return out, (residual, norm)


def dropout_add_layernorm_backward(ops: Ops, dout: tuple[Array, Array], cache: tuple) -> tuple[Array, Array, Array, Array | None]:
    """The chain rule, last step first. Returns dx, dy, dw, db."""
    residual, norm = cache
    ds, dw, db = ops.prenorm_layernorm_backward(dout, norm)
    dx, dy = ops.residual_backward(ds, residual)
    return dx, dy, dw, db


def linear_cross_entropy_forward(ops: Ops, x: Array, w: Array, b: Array | None, targets: Array) -> tuple[Array, tuple]:
    """loss = cross_entropy(x w + b, targets)

    x: (..., C). w: (C, V). b: (V,) or None. targets: (...) integers in [0, V).
    Returns the loss, a scalar in nats, and the two caches.
    """
    logits, head = ops.linear_forward(x, w, b)  # (..., C) -> (..., V)
    loss, xent = ops.cross_entropy_forward(logits, targets)  # (..., V) -> ()
    return loss, (head, xent)


def linear_cross_entropy_backward(ops: Ops, dloss: Array | float, cache: tuple) -> tuple[Array, Array, Array | None]:
    """The chain rule, last step first. Returns dx, dw, db."""
    head, xent = cache
    dlogits = ops.cross_entropy_backward(dloss, xent)
    dx, dw, db = ops.linear_backward(dlogits, head)
    return dx, dw, db
