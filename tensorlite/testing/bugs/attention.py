"""Mistakes people make in attention."""

import math

import numpy as np

from tensorlite.arrays import Array
from tensorlite.random import Key
from tensorlite.reference.attention import attention_backward, merge_heads, split_heads
from tensorlite.reference.dropout import dropout_backward, dropout_forward
from tensorlite.reference.softmax import softmax_backward, softmax_forward
from tensorlite.testing.bugs.bug import bug


@bug(
    "attention",
    "the scale missing from dk",
    "dk",
    how_it_happens="Some implementations scale q before the matmul, so 1/sqrt(D) was taken for a factor of q alone.",
    explanation="scores = q k^T / sqrt(D): the factor is in both derivatives, dq = ds k / sqrt(D) and dk = ds^T q / sqrt(D).",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "the scale applied twice",
    "dq dk",
    how_it_happens="The scale was applied to dscores, which covers both matmuls, and then again in each.",
    explanation="Forward divides by sqrt(D) once, so backward does. Queries and keys learn at a rate that shrinks with D.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs) / math.sqrt(D)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "dk transposed by a reshape",
    "dk",
    how_it_happens="q^T dscores gives the gradient of k^T, of shape (D, T); a reshape to (T, D) made the error go away.",
    explanation="A reshape keeps the memory order of the elements and so mixes positions with channels; the axes must be swapped. "
    "A published NumPy GPT trains with this bug.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = (q.mT @ dscores / math.sqrt(D)).reshape(B, H, T, D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "dv from the probabilities before dropout",
    "dv",
    how_it_happens="The cache holds probs, and y = probs v is what the paper says.",
    explanation="With dropout y = p_dropped v, so dv = p_dropped^T dy: a value whose probability was dropped had no part in y.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = probs.mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "dropout forgotten on the way back",
    "dq dk",
    how_it_happens="Dropout was added to the forward last, and the tests ran with p = 0.",
    explanation="dy v^T is the gradient of the probabilities after dropout; it must pass through dropout before the softmax.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dy @ v.mT, probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "the gradients of q and k swapped",
    "dq dk",
    how_it_happens="Elsewhere the packed order is k, q, v, as in the lecture's head, which creates its key layer first.",
    explanation="Gradients are packed as qkv is: [dq | dk | dv]. The shapes agree, so only the values can tell.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dk, dq, dv)], axis=-1)


@bug(
    "attention",
    "heads split by a reshape alone",
    "dq dk dv",
    how_it_happens="(B, T, C) reshapes to (B, H, T, D) without an error.",
    explanation="The heads lie side by side in C: split C first, to (B, T, H, D), then swap T and H. "
    "A plain reshape gives each head pieces of several positions.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, H, T, D)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "heads merged in the wrong order",
    "dq dk dv",
    how_it_happens="Some models pack [q k v] of head 0, then of head 1; their last line was copied.",
    explanation="q of all heads must come first, then k, then v. Swapping the axes 3 and H goes unnoticed with one head.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.stack([dq, dk, dv]).transpose(1, 3, 2, 0, 4).reshape(qkv.shape)


@bug(
    "attention",
    "softmax's sum over the queries",
    "dq dk",
    how_it_happens="Scores are square, and the axis of the keys was mistaken.",
    explanation="Each query's row of probabilities sums to 1, so the sum of softmax's backward runs over keys, the last axis.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dprobs = dropout_backward(dy @ v.mT, dropout_cache)
    dscores = probs * (dprobs - (dprobs * probs).sum(axis=-2, keepdims=True))
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "dv without the transpose",
    "dv",
    how_it_happens="(T, T) times (T, D) fits either way round.",
    explanation="v at position s is read by all later queries t, so dv_s sums p_dropped_ts dy_t over t: p_dropped^T dy. "
    "Without the transpose a value gets the gradient of earlier queries.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache) @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "heads merged by a reshape alone",
    "dq dk dv",
    how_it_happens="(B, H, T, D) has as many elements as (B, T, C), so the reshape raises no error.",
    explanation="In (B, H, T, D) the positions of one head lie side by side, in (B, T, C) the heads of one position. "
    "Swap H and T first. With one head nothing shows.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([d.reshape(B, T, H * D) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "dk and dv transposed twice",
    "dk dv",
    how_it_happens="The two were brought to (B, T, H, D) where they are computed, and then again where the heads are merged.",
    explanation="Two transposes cancel, so the reshape reads (B, H, T, D) as (B, T, C) and mixes heads with positions. "
    "dq has only one of them.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = (dropout_backward(probs, dropout_cache).mT @ dy).transpose(0, 2, 1, 3)
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = (dscores.mT @ q / math.sqrt(D)).transpose(0, 2, 1, 3)
    return np.concatenate([d.transpose(0, 2, 1, 3).reshape(B, T, H * D) for d in (dq, dk, dv)], axis=-1)


@bug(
    "attention",
    "the sign of a dropped probability",
    "dq dk",
    how_it_happens="A kernel that negates the probabilities it drops multiplies those by the sum alone. "
    "The formula was copied, the negative probabilities were not.",
    explanation="Where dropout blocks, dprobs is 0, and p (dprobs - sum) = -p sum is right as it stands. "
    "With a positive p the other form has the opposite sign.",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    mask, _ = dropout_cache
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dprobs = dropout_backward(dy @ v.mT, dropout_cache)
    weighted_sum = (dprobs * probs).sum(axis=-1, keepdims=True)
    dscores = probs * np.where(mask, dprobs - weighted_sum, weighted_sum)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


def _attention_unmasked(qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple]:
    q, k, v = split_heads(qkv, n_head)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    probs, _ = softmax_forward(scores)
    p_dropped, dropout_cache = dropout_forward(probs, p, key)
    return merge_heads(p_dropped @ v), (qkv, n_head, probs, dropout_cache)


@bug(
    "attention",
    "no causal mask",
    "y",
    how_it_happens="The layer came from an encoder, where every position may look everywhere.",
    explanation="A position sees its own target. The loss falls wonderfully, the samples are nonsense, and backward is right.",
    forward=_attention_unmasked,
    caught_by="test_attention_cannot_see_the_future",
)
def _(dy: Array, cache: tuple) -> Array:
    return attention_backward(dy, cache)


def _attention_leaking(qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple]:
    q, k, v = split_heads(qkv, n_head)
    T, D = q.shape[-2:]
    scores = q @ k.mT / math.sqrt(D)
    visible = np.tri(T, T, 1, dtype=bool)
    probs, _ = softmax_forward(np.where(visible, scores, -math.inf))
    p_dropped, dropout_cache = dropout_forward(probs, p, key)
    return merge_heads(p_dropped @ v), (qkv, n_head, probs, dropout_cache)


@bug(
    "attention",
    "one future token leaks",
    "y",
    how_it_happens="The diagonal of tri was counted from 1.",
    explanation="Position t sees t + 1, which is exactly its target. The mask looks triangular, and backward is right.",
    forward=_attention_leaking,
    caught_by="test_attention_cannot_see_the_future",
)
def _(dy: Array, cache: tuple) -> Array:
    return attention_backward(dy, cache)


def _attention_masked_by_zero(qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple]:
    q, k, v = split_heads(qkv, n_head)
    T, D = q.shape[-2:]
    visible = np.tri(T, dtype=bool)
    probs, _ = softmax_forward(np.where(visible, q @ k.mT / math.sqrt(D), 0.0))
    p_dropped, dropout_cache = dropout_forward(probs, p, key)
    return merge_heads(p_dropped @ v), (qkv, n_head, probs, dropout_cache)


@bug(
    "attention",
    "masked scores set to 0",
    "y",
    how_it_happens="Masking was taken to mean a multiplication by 0.",
    explanation="Softmax turns a score of 0 into exp(0) = 1, so future values still get weight; only -inf means never.",
    forward=_attention_masked_by_zero,
    caught_by="test_attention_cannot_see_the_future",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs) * np.tri(T)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


def _attention_masked_late(qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple]:
    q, k, v = split_heads(qkv, n_head)
    T, D = q.shape[-2:]
    probs, _ = softmax_forward(q @ k.mT / math.sqrt(D))
    p_dropped, dropout_cache = dropout_forward(probs * np.tri(T), p, key)
    return merge_heads(p_dropped @ v), (qkv, n_head, probs, dropout_cache)


@bug(
    "attention",
    "masked after the softmax",
    "y",
    how_it_happens="The mask was put on the probabilities, because that is where zeros are wanted.",
    explanation="What is left of a row no longer sums to 1, and the lost share depends on the future: y_0 is less than v_0.",
    forward=_attention_masked_late,
    caught_by="test_attention_at_position_zero_is_the_first_value",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs * np.tri(T), dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache) * np.tri(T), probs)
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


def _attention_scaled_by_d(qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple]:
    q, k, v = split_heads(qkv, n_head)
    T, D = q.shape[-2:]
    visible = np.tri(T, dtype=bool)
    probs, _ = softmax_forward(np.where(visible, q @ k.mT / D, -math.inf))
    p_dropped, dropout_cache = dropout_forward(probs, p, key)
    return merge_heads(p_dropped @ v), (qkv, n_head, probs, dropout_cache)


@bug(
    "attention",
    "scale 1/D",
    "y",
    how_it_happens="The scale was meant as a mean over channels, or the square root was lost in copying.",
    explanation="q and k of unit variance give scores of variance D, and 1/sqrt(D) makes it 1; 1/D flattens the attention.",
    forward=_attention_scaled_by_d,
    caught_by="test_attention_scale_is_one_over_root_d",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dscores = softmax_backward(dropout_backward(dy @ v.mT, dropout_cache), probs)
    dq = dscores @ k / D
    dk = dscores.mT @ q / D
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


def _attention_over_queries(qkv: Array, n_head: int, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple]:
    q, k, v = split_heads(qkv, n_head)
    T, D = q.shape[-2:]
    e = np.where(np.tri(T, dtype=bool), np.exp(q @ k.mT / math.sqrt(D)), 0.0)
    probs = e / e.sum(axis=-2, keepdims=True)
    p_dropped, dropout_cache = dropout_forward(probs, p, key)
    return merge_heads(p_dropped @ v), (qkv, n_head, probs, dropout_cache)


@bug(
    "attention",
    "softmax over the queries",
    "y",
    how_it_happens="Scores are square, and the axis of the keys was mistaken, in both directions.",
    explanation="The weights of a key then sum to 1 over the queries, and those of a query do not sum to 1 over the keys. "
    "With equal scores the output is no running mean.",
    forward=_attention_over_queries,
    caught_by="test_attention_with_equal_scores_is_the_running_mean",
)
def _(dy: Array, cache: tuple) -> Array:
    qkv, n_head, probs, dropout_cache = cache
    q, k, v = split_heads(qkv, n_head)
    B, H, T, D = q.shape
    dy = dy.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dv = dropout_backward(probs, dropout_cache).mT @ dy
    dprobs = dropout_backward(dy @ v.mT, dropout_cache)
    dscores = probs * (dprobs - (dprobs * probs).sum(axis=-2, keepdims=True))
    dq = dscores @ k / math.sqrt(D)
    dk = dscores.mT @ q / math.sqrt(D)
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)
