"""Causal attention in fewer passes over the (T, S) scores. It replaces tensorlite/reference/attention.py; the derivation is there.

What differs from the reference:
  a. 1/sqrt(D) scales a transposed copy of k: (D, S), instead of the scores: (T, S), and in backward one of v. The copy pays for
     itself: a small matmul with a transposed right side takes twice the time.
  b. Softmax subtracts its row's largest score only to keep exp finite. No score exceeds |q| |k|, and below MAX_SAFE_SCORE nothing
     can overflow: then the subtraction, and the search for the largest, is left out.
  c. The mask is a multiplication by 0 and 1 after exp.
  d. Dropout's inv_keep scales y: (T, D), and in backward dy.
  e. Backward needs sum(dprobs probs) per row. This is delta = dy . y over D values (Dao et al. 2022, arXiv:2205.14135, B.4), since
     dprobs probs = (dy v^T) p_dropped and p_dropped v = y. So y is saved: a reference to what the next layer saves anyway.
  f. All else that matmuls read and write, q, k, v, dq, dk and dv, stays where it lies in the packed array.
"""

import math
from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.kv_cache import LayerCache
from tensorlite.random import Key
from tensorlite.reference.attention import split_heads
from tensorlite.reference.dropout import draw_mask
from tensorlite.reference.softmax import softmax_forward

MAX_SAFE_SCORE = 60.0  # exp(60) = 1e26: a row may hold 1e12 such terms before float32 ends


def attention_forward(
    ops: Any, qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None, kv_cache: LayerCache | None = None
) -> tuple[Array, tuple | None]:
    """y = dropout(softmax(mask(q k^T / sqrt(D)))) v. The cache holds qkv, the probabilities, the mask and y."""
    array_namespace(qkv)
    empty = ops.memory.empty
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D)
    if kv_cache is not None:
        k, v = kv_cache.extend(k, v)  # (B, H, S, D)
    B, H, T, D = q.shape
    S = k.shape[2]
    scale = 1.0 / math.sqrt(D)
    if T == 1:  # the last position sees all: no mask, one short row for each head, and nothing worth copying k for
        probs, _ = softmax_forward((q * scale) @ k.transpose(0, 1, 3, 2))
    else:
        kt = np.multiply(k.transpose(0, 1, 3, 2), scale, out=empty((B, H, D, S), qkv))  # a.
        scores = np.matmul(q, kt, out=empty((B, H, T, S), qkv))  # (B, H, T, D) @ (B, H, D, S)
        probs = masked_softmax(ops, scores, max_row_norm(q) * max_row_norm(k) * scale)
    p_dropped, dropout_cache = probs, draw_mask(np, probs.shape, p, key)
    if dropout_cache:
        mask, inv_keep = dropout_cache
        p_dropped = np.multiply(probs, mask, out=empty(probs.shape, probs))  # but for inv_keep
    y = empty((B, T, H * D), qkv)
    np.matmul(p_dropped, v, out=y.reshape(B, T, H, D).transpose(0, 2, 1, 3))  # f. (B, H, T, S) @ (B, H, S, D)
    if dropout_cache:
        y *= inv_keep  # d.
    if kv_cache is not None:  # generation has no backward
        return y, None
    return y, (qkv, n_head, probs, dropout_cache, y)


def attention_backward(ops: Any, dy: Array, cache: tuple) -> Array:
    """dv = p_dropped^T dy,  dscores = p_dropped (dy v^T) - probs delta,  dq = dscores k / sqrt(D),  dk = dscores^T q / sqrt(D)."""
    qkv, n_head, probs, dropout_cache, y = cache
    array_namespace(dy, qkv)
    empty = ops.memory.empty
    B, T, C = y.shape
    D = C // n_head
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D)
    dqkv = empty(qkv.shape, dy, qkv)
    dq, dk, dv = split_heads(dqkv, n_head)  # f. views, written below
    scale = 1.0 / math.sqrt(D)
    mask, inv_keep = dropout_cache or (None, 1.0)
    p_dropped = probs if mask is None else np.multiply(probs, mask, out=empty(probs.shape, probs))  # but for inv_keep
    heads = (B, T, n_head, D)
    delta = np.einsum("bthd,bthd->bht", dy.reshape(heads), y.reshape(heads))[..., None]  # e. (B, H, T, 1)
    dy = dy.reshape(heads).transpose(0, 2, 1, 3)  # (B, H, T, D)
    if mask is not None:
        dy = np.multiply(dy, inv_keep, out=empty((B, n_head, T, D), dy))  # d.
    np.matmul(p_dropped.transpose(0, 1, 3, 2), dy, out=dv)
    vt = np.multiply(v.transpose(0, 1, 3, 2), scale, out=empty((B, n_head, D, T), qkv))  # a. for dq and dk alike
    delta *= scale
    ds = np.matmul(dy, vt, out=empty(probs.shape, dy, qkv))  # dp_dropped; becomes dscores in place
    if mask is None:
        ds -= delta
        ds *= probs
    else:
        ds *= p_dropped
        ds -= np.multiply(probs, delta, out=p_dropped)
    np.matmul(ds, k, out=dq)  # (B, H, T, T) @ (B, H, T, D)
    np.matmul(ds.transpose(0, 1, 3, 2), q, out=dk)
    return dqkv


def masked_softmax(ops: Any, scores: Array, bound: float) -> Array:
    """softmax over the keys that each position sees, into scores: (B, H, T, S), none of which exceeds the bound."""
    T, S = scores.shape[-2:]
    if not bound < MAX_SAFE_SCORE:  # NaN included
        visible = np.tri(T, S, S - T, dtype=bool)  # (T, S), as in the reference
        return softmax_forward(np.where(visible, scores, -math.inf))[0]
    e = np.exp(scores, out=scores)  # b.
    e *= np.tri(T, S, S - T, dtype=e.real.dtype)  # c.
    e *= (1.0 / (e @ ops.memory.constant(S, 1.0, e.dtype)))[..., None]  # over the sums: (B, H, T, 1)
    return e


def max_row_norm(x: Array) -> float:
    """The largest norm of a row of x: (B, H, T, D); NaN if x holds one. For a complex x (the complex step's), its real part's."""
    return math.sqrt(np.vecdot(x, x).real.max(initial=0.0))
