"""Causal attention in fewer passes over the (T, S) scores. It replaces tensorlite/reference/attention.py; the derivation is there.

What differs from the reference:
  a. 1/sqrt(D) scales a transposed copy of k: (D, S), instead of the scores: (T, S). In backward it scales a transposed copy of v.
     The copy pays for itself, because a small matmul with a transposed right side takes twice the time.
  b. Softmax subtracts the largest score of a row only to keep exp finite. No score exceeds |q| |k|, so below MAX_SAFE_SCORE nothing
     can overflow. Then both the subtraction and the search for the largest score are left out.
  c. The mask is a multiplication by 0 and 1 after exp.
  d. Dropout's inv_keep scales y: (T, D), and in backward dy.
  e. Backward needs sum(dprobs probs) per row. This is delta = dy . y over D values (Dao et al. 2022, arXiv:2205.14135, B.4), since
     dprobs probs = (dy v^T) p_dropped and p_dropped v = y. So y is saved, which is a reference to what the next layer saves anyway.
  f. The matmuls read q, k and v, and write dq, dk and dv, where they lie in the packed array.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.kv_cache import LayerCache
from tensorlite.random import Key
from tensorlite.reference.attention import split_heads
from tensorlite.reference.dropout import draw_mask
from tensorlite.reference.softmax import softmax_forward

if TYPE_CHECKING:
    from tensorlite.cpu.ops import CPUOps

MAX_SAFE_SCORE = 60.0  # exp(60) = 1e26: the sum of 1e12 such terms is still finite in float32, but not in float16


class AttentionCache(NamedTuple):
    """What backward reads of forward."""

    qkv: Array
    n_head: int
    probs: Array  # (B, H, T, T)
    dropout_cache: tuple | None  # the mask and inv_keep
    y: Array


def attention_forward(
    ops: "CPUOps", qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None, kv_cache: LayerCache | None = None
) -> tuple[Array, AttentionCache | None]:
    """y = dropout(softmax(mask(q k^T / sqrt(D)))) v. The cache holds qkv, the probabilities, the mask and y."""
    array_namespace(qkv)
    empty = ops.memory.empty
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D)
    if kv_cache is not None:
        k, v = kv_cache.extend(k, v)  # (B, H, S, D)
    B, H, T, D = q.shape
    S = k.shape[2]
    scale = 1.0 / math.sqrt(D)
    if T == 1:  # the last position sees all keys, so no mask is needed; one short row per head is not worth a copy of k
        probs, _ = softmax_forward((q * scale) @ k.transpose(0, 1, 3, 2))
    else:
        kt = np.multiply(k.transpose(0, 1, 3, 2), scale, out=empty((B, H, D, S), qkv))  # a.
        scores = np.matmul(q, kt, out=empty((B, H, T, S), qkv))  # (B, H, T, D) @ (B, H, D, S)
        probs = masked_softmax(ops, scores, max_row_norm(q) * max_row_norm(k) * scale)
    p_dropped = probs
    dropout_cache = draw_mask(np, probs.shape, p, key)
    if dropout_cache:
        mask, inv_keep = dropout_cache
        p_dropped = np.multiply(probs, mask, out=empty(probs.shape, probs))  # without inv_keep, see d.
    y = empty((B, T, H * D), qkv)
    np.matmul(p_dropped, v, out=y.reshape(B, T, H, D).transpose(0, 2, 1, 3))  # f. (B, H, T, S) @ (B, H, S, D)
    if dropout_cache:
        y *= inv_keep  # d.
    if kv_cache is not None:  # generation has no backward
        return y, None
    return y, AttentionCache(qkv, n_head, probs, dropout_cache, y)


def attention_backward(ops: "CPUOps", dy: Array, cache: tuple) -> Array:
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
    p_dropped = probs
    if dropout_cache:
        mask, inv_keep = dropout_cache
        p_dropped = np.multiply(probs, mask, out=empty(probs.shape, probs))  # without inv_keep, see d.
    dy_heads = dy.reshape(B, T, n_head, D)
    y_heads = y.reshape(B, T, n_head, D)
    delta = np.einsum("bthd,bthd->bht", dy_heads, y_heads)[..., None]  # e. (B, H, T, 1)
    dy = dy_heads.transpose(0, 2, 1, 3)  # (B, H, T, D)
    if dropout_cache:
        dy = np.multiply(dy, inv_keep, out=empty((B, n_head, T, D), dy))  # d.
    np.matmul(p_dropped.transpose(0, 1, 3, 2), dy, out=dv)
    vt = np.multiply(v.transpose(0, 1, 3, 2), scale, out=empty((B, n_head, D, T), qkv))  # a. scales both dq and dk
    delta *= scale
    ds = np.matmul(dy, vt, out=empty(probs.shape, dy, qkv))  # dp_dropped, which becomes dscores in place
    if dropout_cache:
        ds *= p_dropped
        ds -= np.multiply(probs, delta, out=p_dropped)
    else:
        ds -= delta
        ds *= probs
    ds[:, :, :1] = 0.0  # query 0 sees one key, and AdamW would make a step of the rounding of dy v^T - delta
    np.matmul(ds, k, out=dq)  # (B, H, T, T) @ (B, H, T, D)
    np.matmul(ds.transpose(0, 1, 3, 2), q, out=dk)
    return dqkv


def masked_softmax(ops: "CPUOps", scores: Array, bound: float) -> Array:
    """Return the softmax over the keys that each position sees, computed in place.

    scores: (B, H, T, S), which are overwritten. bound: a value that no score exceeds, possibly NaN.
    """
    T, S = scores.shape[-2:]
    if scores.dtype.itemsize < 4 or not bound < MAX_SAFE_SCORE:  # also where the bound is NaN
        visible = np.tri(T, S, S - T, dtype=bool)  # (T, S), as in the reference
        return softmax_forward(np.where(visible, scores, -math.inf))[0]
    e = np.exp(scores, out=scores)  # b.
    e *= np.tri(T, S, S - T, dtype=e.real.dtype)  # c.
    row_sums = e @ ops.memory.constant(S, 1.0, e.dtype)  # (B, H, T)
    e *= (1.0 / row_sums)[..., None]
    return e


def max_row_norm(x: Array) -> float:
    """Return the largest norm of a row of x: (B, H, T, D), or NaN if x holds one.

    For a complex x, which the gradient checker's complex step passes, return the norm by the real part of x . x.
    """
    return math.sqrt(np.vecdot(x, x).real.max(initial=0.0))
