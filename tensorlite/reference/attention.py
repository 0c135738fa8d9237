"""Causal multi-head self-attention on packed q, k and v (Vaswani et al. 2017, arXiv:1706.03762)."""

import math

from tensorlite.arrays import Array, array_namespace
from tensorlite.kv_cache import LayerCache
from tensorlite.random import Key
from tensorlite.reference.dropout import dropout_backward, dropout_forward
from tensorlite.reference.softmax import softmax_backward, softmax_forward


def split_heads(qkv: Array, n_head: int) -> tuple[Array, Array, Array]:
    """Return q, k, v: (B, H, T, D) views of qkv: (B, T, 3C), whose last axis is ordered [q of all heads, k, v]."""
    B, T, C3 = qkv.shape
    if n_head < 1 or C3 % (3 * n_head):
        raise ValueError(f"attention: {C3} channels do not split into q, k, v of {n_head} heads")
    D = C3 // (3 * n_head)
    packed = qkv.reshape(B, T, 3, n_head, D)
    q, k, v = packed.transpose(2, 0, 3, 1, 4)  # each (B, H, T, D)
    return q, k, v


def merge_heads(x: Array) -> Array:
    """Return (B, T, C) for x: (B, H, T, D): the heads side by side."""
    B, H, T, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * D)


def attention_forward(
    qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None, kv_cache: LayerCache | None = None
) -> tuple[Array, tuple | None]:
    """y = dropout(softmax(mask(q k^T / sqrt(D)))) v  for each head, where position t sees positions <= t only.

    qkv: (B, T, 3C) float, [q | k | v] along the last axis, each of n_head heads of D = C / n_head channels.
    p, key: dropout on the probabilities.
    kv_cache: keys and values of earlier positions (generation). qkv continues them and is appended to them.
    Returns y: (B, T, C), and a cache of a reference to qkv, the probabilities before dropout (B, H, T, T) and dropout's cache.
    With a kv_cache the cache is None, because generation has no backward.
    Raises ValueError when 3C is not divisible by 3 n_head. Cost: 4 B T^2 C FLOPs. Tests: tests/reference/test_ops.py[attention].
    """
    xp = array_namespace(qkv)
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D)
    if kv_cache is not None:
        k, v = kv_cache.extend(k, v)  # (B, H, S, D), S = positions before + T
    T, D = q.shape[2:]
    S = k.shape[2]
    scale = 1.0 / math.sqrt(D)
    k_t = k.transpose(0, 1, 3, 2)  # (B, H, D, S)
    scores = (q @ k_t) * scale  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
    visible = xp.tri(T, S, S - T, dtype=bool)  # (T, S): query t, at position S-T+t, sees keys 0..S-T+t
    scores = xp.where(visible, scores, -math.inf)  # (B, H, T, S)
    probs, _ = softmax_forward(scores)  # (B, H, T, S)
    p_dropped, dropout_cache = dropout_forward(probs, p, key)
    y = merge_heads(p_dropped @ v)  # (B, H, T, S) @ (B, H, S, D) -> (B, T, C)
    if kv_cache is not None:  # generation has no backward
        return y, None
    return y, (qkv, n_head, probs, dropout_cache)


def attention_backward(dy: Array, cache: tuple) -> Array:
    """dv = p_dropped^T dy,  dscores = softmax_backward(dropout_backward(dy v^T)),  dq, dk = (dscores k, dscores^T q) / sqrt(D).

    dy: (B, T, C).
    Returns dqkv: (B, T, 3C), packed as qkv is.

    Derivation, for one head, backwards through y = p_dropped v:
      1. y = p_dropped v is a matmul:             dp_dropped = dy v^T,  dv = p_dropped^T dy.
      2. p_dropped = dropout(probs):              dprobs = dropout_backward(dp_dropped).
      3. probs = softmax(scores), row by row:     dscores = probs (dprobs - sum(dprobs probs)).
         A masked entry has probs = 0, so its dscores is exactly 0: the mask needs no line of its own.
      4. scores = q k^T / sqrt(D), a matmul:      dq = dscores k / sqrt(D),  dk = dscores^T q / sqrt(D).
    Each row of dscores sums to 0, because softmax ignores a shift. So dk summed over positions is 0, and a bias on the keys
    could learn nothing. Without dropout dscores_ts = probs_ts dy_t . (v_s - y_t): see longhand/attention.py for what this means.
    """
    qkv, n_head, probs, dropout_cache = cache
    xp = array_namespace(dy, qkv)
    B, T, C3 = qkv.shape
    q, k, v = split_heads(qkv, n_head)  # (B, H, T, D), as in forward
    D = q.shape[-1]
    scale = 1.0 / math.sqrt(D)
    p_dropped = dropout_backward(probs, dropout_cache)  # (B, H, T, T), as in forward: dropout is linear
    dy = dy.reshape(B, T, n_head, D).transpose(0, 2, 1, 3)  # (B, H, T, D)
    dp_dropped = dy @ v.transpose(0, 1, 3, 2)  # 1. (B, H, T, D) @ (B, H, D, T) -> (B, H, T, T)
    dv = p_dropped.transpose(0, 1, 3, 2) @ dy  # 1. (B, H, T, T) @ (B, H, T, D) -> (B, H, T, D)
    dprobs = dropout_backward(dp_dropped, dropout_cache)  # 2. (B, H, T, T)
    dscores = softmax_backward(dprobs, probs)  # 3. (B, H, T, T)
    dq = (dscores @ k) * scale  # 4. (B, H, T, T) @ (B, H, T, D) -> (B, H, T, D)
    dk = (dscores.transpose(0, 1, 3, 2) @ q) * scale  # 4. (B, H, T, T) @ (B, H, T, D) -> (B, H, T, D)
    dqkv = xp.stack([dq, dk, dv])  # (3, B, H, T, D)
    return dqkv.transpose(1, 3, 0, 2, 4).reshape(B, T, C3)  # the transpose that split_heads made, undone
