"""Causal attention in fewer passes over the (T, S) scores. It replaces tensorlite/attention.py; the derivation is there.

What differs from the reference:
  a. 1/sqrt(D) scales q: (T, D), instead of the scores: (T, S).
  b. Softmax subtracts its row's largest score only to keep exp finite. No score exceeds |q| |k|, and below SAFE nothing can
     overflow: then the subtraction, and the search for the largest, is left out.
  c. The mask is a product with 0 and 1 after exp.
  d. Dropout's 1/keep scales y: (T, D), and in backward dy.
  e. Backward needs sum(dprobs probs) a row, and this is dy . y, two rows of D numbers (Dao et al. 2022, arXiv:2205.14135, B.4),
     since dprobs probs = (dy v^T) kept and kept v = y. So y is kept: a reference to what the next layer keeps anyway.
  f. Products read q, k, v and write dq, dk, dv where they lie in the packed array: no copies.
"""

import math
from typing import Any

import numpy as np

from tensorlite.attention import LayerCache, split_heads
from tensorlite.random import Key, drop_threshold, keep_mask
from tensorlite.softmax import softmax_forward
from tensorlite.xp import Array, namespace

SAFE = 60.0  # exp(60) = 1e26: a row may hold 1e12 such terms before float32 ends


def attention_forward(
    ops: Any, qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None, past: LayerCache | None = None
) -> tuple[Array, tuple | None]:
    """y = dropout(softmax(mask(q k^T / sqrt(D)))) v. The cache holds qkv, the probabilities, the mask and y."""
    namespace(qkv)
    new = ops.memory.new
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D)
    if past is not None:
        k, v = past.extend(k, v)  # (B, H, S, D)
    B, H, T, D = q.shape
    S = k.shape[2]
    q = np.multiply(q, 1.0 / math.sqrt(D), out=new(q.shape, qkv))  # a.
    scores = np.matmul(q, k.transpose(0, 1, 3, 2), out=new((B, H, T, S), qkv))  # (B, H, T, D) @ (B, H, D, S)
    if T == 1:  # the last position sees all: no mask, and one short row for each head
        probs, _ = softmax_forward(scores)
    elif longest(q) * longest(k) < SAFE:  # b.
        probs = np.exp(scores, out=scores)
        probs *= np.tri(T, S, S - T, dtype=probs.real.dtype)  # c.
        probs *= (1.0 / (probs @ ops.memory.full(S, 1.0, probs.dtype)))[..., None]  # over the sums: (B, H, T, 1)
    else:
        probs, _ = softmax_forward(np.where(np.tri(T, S, S - T, dtype=bool), scores, -math.inf))
    kept, drop, dropped = probs, None, drop_threshold(p)
    if key is not None and dropped:
        drop = keep_mask(np, key, probs.shape, p), 65536 / (65536 - dropped)
        kept = np.multiply(probs, drop[0], out=new(probs.shape, probs))
    y = new((B, T, H * D), qkv)
    np.matmul(kept, v, out=y.reshape(B, T, H, D).transpose(0, 2, 1, 3))  # f. (B, H, T, S) @ (B, H, S, D)
    if drop:
        y *= drop[1]  # d.
    return y, (qkv, n_head, probs, drop, y) if past is None else None


def attention_backward(ops: Any, dy: Array, cache: tuple) -> Array:
    """dv = kept^T dy,  dscores = kept (dy v^T) - probs (dy . y),  dq = dscores k / sqrt(D),  dk = dscores^T q / sqrt(D)."""
    qkv, n_head, probs, drop, y = cache
    namespace(dy, qkv)
    new = ops.memory.new
    B, T, C = y.shape
    D = C // n_head
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D)
    dqkv = new(qkv.shape, dy, qkv)
    dq, dk, dv = split_heads(dqkv, n_head)  # f. views, written below
    mask, scale = drop or (None, 1.0)
    kept = probs if mask is None else np.multiply(probs, mask, out=new(probs.shape, probs))  # (B, H, T, T), but for 1/keep
    heads = (B, T, n_head, D)
    dy_y = np.einsum("bthd,bthd->bht", dy.reshape(heads), y.reshape(heads))[..., None]  # e. (B, H, T, 1)
    dy = np.multiply(dy.reshape(heads).transpose(0, 2, 1, 3), scale, out=new((B, n_head, T, D), dy))  # d.
    np.matmul(kept.transpose(0, 1, 3, 2), dy, out=dv)
    dy *= 1.0 / math.sqrt(D)  # a. for dq and dk alike
    dy_y *= 1.0 / math.sqrt(D)
    dscores = np.matmul(dy, v.transpose(0, 1, 3, 2), out=new(probs.shape, dy, qkv))  # dkept
    if mask is None:
        dscores -= dy_y
        dscores *= probs
    else:
        dscores *= kept
        dscores -= np.multiply(probs, dy_y, out=kept)
    np.matmul(dscores, k, out=dq)  # (B, H, T, T) @ (B, H, T, D)
    np.matmul(dscores.transpose(0, 1, 3, 2), q, out=dk)
    return dqkv


def longest(x: Array) -> float:
    """The length of the longest row of x: (B, H, T, D), NaN if x has one. Of a complex x (the complex step's), the real part's."""
    return math.sqrt(np.vecdot(x, x).real.max(initial=0.0))
