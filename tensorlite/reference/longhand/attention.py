"""Attention in the long form: one query, then the queries of one head, then all heads of a batch."""

import math

from tensorlite.arrays import Array, array_namespace


def longhand_query(q: Array, k: Array, v: Array, dropout: Array, dy: Array) -> tuple[Array, Array, Array, Array]:
    """y = sum_s p_s v_s,  p = dropout * softmax(k q / sqrt(D)): one query of one head.

    q: (D,), the query.
    k, v: (S, D), the keys and values that it sees. A masked key is simply not among them.
    dropout: (S,), the factor of each probability: 0 if it is dropped, else inv_keep. All are 1 where nothing is dropped.
    dy: (D,).
    Returns y: (D,), dq: (D,), dk: (S, D), dv: (S, D).

    The fused form: line 10 of backward is step 1 of attention_backward, line 9 is step 2, lines 8 to 3 (softmax's) are step 3,
    and lines 2 and 1 are step 4.

    What dscores says. Write m_s for dropout_s. Then dscores_s = probs_s dy . (m_s v_s - y):
      1. Lines 10 and 9 of backward:    dprobs_s = m_s dy . v_s.
      2. Summed with the weights probs: sum_j probs_j dprobs_j = dy . sum_j probs_j m_j v_j = dy . y, which is line 10 of forward.
      3. Lines 8 to 3, softmax's:       dscores_s = probs_s (dprobs_s - sum_j probs_j dprobs_j) = probs_s dy . (m_s v_s - y).
    Without dropout y is the centre of mass of the values. Raising score s by a small h moves y by h probs_s (v_s - y), towards v_s,
    and the dot product with dy is what this does to the loss. The dy . y of step 2 is the `delta` of FlashAttention's backward.
    """
    xp = array_namespace(q, k, v, dropout, dy)
    scale = 1.0 / math.sqrt(len(q))
    dots = k @ q  # 1. (S, D) @ (D,) -> (S,)
    scores = dots * scale  # 2. (S,)
    max_score = scores.max()  # 3. ()
    shifted = scores - max_score  # 4. (S,)
    exps = xp.exp(shifted)  # 5. (S,)
    exp_sum = exps.sum()  # 6. ()
    inv_exp_sum = 1.0 / exp_sum  # 7. ()
    probs = exps * inv_exp_sum  # 8. (S,)
    p_dropped = probs * dropout  # 9. (S,)
    y = p_dropped @ v  # 10. (S,) @ (S, D) -> (D,)

    dp_dropped = v @ dy  # 10. (S, D) @ (D,) -> (S,), matmul: product and sum, as in the linear layer
    dv = xp.outer(p_dropped, dy)  # 10. (S, D), matmul
    dprobs = dp_dropped * dropout  # 9. (S,), constant
    dexps = dprobs * inv_exp_sum  # 8. (S,), product
    dinv_exp_sum = (dprobs * exps).sum()  # 8. (), product; inv_exp_sum was broadcast
    dexp_sum = -dinv_exp_sum / exp_sum**2  # 7. (), function: (1/u)' = -1/u^2
    dexps = dexps + dexp_sum  # 6. (S,), sum; exps is used in lines 6 and 8: reuse
    dshifted = dexps * exps  # 5. (S,), function: exp' = exp
    dscores = dshifted  # 4. (S,), add
    dmax_score = -dshifted.sum()  # 4. (), add; max_score was broadcast
    dscores = dscores + xp.where(scores == max_score, dmax_score, 0.0)  # 3. (S,), pick; reuse of scores
    ddots = dscores * scale  # 2. (S,), constant
    dk = xp.outer(ddots, q)  # 1. (S, D), matmul
    dq = ddots @ k  # 1. (S,) @ (S, D) -> (D,), matmul
    return y, dq, dk, dv


def longhand_head(q: Array, k: Array, v: Array, dropout: Array, dy: Array) -> tuple[Array, Array, Array, Array]:
    """Every query t of one head, which sees the positions 0..t.

    q, k, v: (T, D).
    dropout: (T, T), row t for query t.
    dy: (T, D).
    Returns y, dq, dk, dv: each (T, D). A query is used once. Key s and value s are used by every query t >= s, and every use adds.
    """
    xp = array_namespace(q, k, v, dropout, dy)
    y = xp.zeros_like(q)
    dq = xp.zeros_like(q)
    dk = xp.zeros_like(k)
    dv = xp.zeros_like(v)
    for t in range(len(q)):
        seen = slice(0, t + 1)
        y_t, dq_t, dk_seen, dv_seen = longhand_query(q[t], k[seen], v[seen], dropout[t, seen], dy[t])
        y[t] = y_t
        dq[t] = dq_t
        dk[seen] += dk_seen
        dv[seen] += dv_seen
    return y, dq, dk, dv


def longhand_attention(qkv: Array, n_head: int, dropout: Array, dy: Array) -> tuple[Array, Array]:
    """Every head of every sequence. The heads are independent: each reads and writes its own channels.

    qkv: (B, T, 3C), [q | k | v] along the last axis, each of n_head heads of D = C / n_head channels.
    dropout: (B, H, T, T).
    dy: (B, T, C).
    Returns y: (B, T, C), dqkv: (B, T, 3C).
    """
    xp = array_namespace(qkv, dropout, dy)
    B, T, C = dy.shape
    D = C // n_head
    y = xp.zeros((B, T, C), qkv.dtype)
    dqkv = xp.zeros_like(qkv)
    for b in range(B):
        for h in range(n_head):
            q_at = slice(h * D, (h + 1) * D)  # in qkv, and of this head's output in y
            k_at = slice(C + h * D, C + (h + 1) * D)
            v_at = slice(2 * C + h * D, 2 * C + (h + 1) * D)
            q = qkv[b, :, q_at]  # (T, D)
            k = qkv[b, :, k_at]  # (T, D)
            v = qkv[b, :, v_at]  # (T, D)
            y_h, dq, dk, dv = longhand_head(q, k, v, dropout[b, h], dy[b, :, q_at])
            y[b, :, q_at] = y_h
            dqkv[b, :, q_at] = dq
            dqkv[b, :, k_at] = dk
            dqkv[b, :, v_at] = dv
    return y, dqkv
