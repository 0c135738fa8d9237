"""The closed forms of the library against the long form, which has one d-variable per intermediate value.

Every function of tensorlite/reference/longhand takes the smallest possible steps, so it is slow to run and hard to get wrong. Where
the two differ, its d-variables show which step of a closed form is at fault. test_longhand.py tests the long form itself.
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cases import drops, every_backend
from tensorlite.reference.dropout import draw_mask
from tensorlite.reference.longhand import (
    longhand_attention,
    longhand_cross_entropy,
    longhand_embedding,
    longhand_gelu,
    longhand_layernorm,
    longhand_linear,
    longhand_softmax,
)
from tensorlite.reference.softmax import softmax_forward
from tensorlite.testing.properties import gains, seeds, sizes

pytestmark = every_backend


def assert_same(found, expected):
    """Equal to 1e-12, y and each gradient."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@given(seeds(), sizes(4), sizes(5), sizes(6))
def test_linear(ops, seed, N, C, D):
    random = np.random.default_rng(seed)
    x, w, b = random.standard_normal((N, C)), random.standard_normal((C, D)), random.standard_normal(D)
    dy = random.standard_normal((N, D))
    y, cache = ops.linear_forward(x, w, b)
    assert_same((y, *ops.linear_backward(dy, cache)), longhand_linear(x, w, b, dy))


@given(seeds(), sizes(6), sizes(4), sizes(5))
def test_embedding(ops, seed, N, V, C):
    random = np.random.default_rng(seed)
    ids, table, dy = random.integers(0, V, N), random.standard_normal((V, C)), random.standard_normal((N, C))
    y, cache = ops.embedding_forward(ids, table)
    assert_same((y, ops.embedding_backward(dy, cache)), longhand_embedding(ids, table, dy))


@given(seeds(), sizes(4), st.integers(2, 8), st.sampled_from([1e-5, 0.1]))
def test_layernorm(ops, seed, N, C, eps):
    random = np.random.default_rng(seed)
    x = random.standard_normal((N, C)) + np.arange(C)  # nearly constant rows lose digits in any formula
    w, b, dy = gains(random, C), random.standard_normal(C), random.standard_normal((N, C))
    y, cache = ops.layernorm_forward(x, w, b, eps)
    assert_same((y, *ops.layernorm_backward(dy, cache)), longhand_layernorm(x, w, b, eps, dy))


@given(seeds(), sizes(5), sizes(7), st.sampled_from([1.0, -0.3]))
def test_cross_entropy(ops, seed, N, V, dloss):
    random = np.random.default_rng(seed)
    logits, targets = random.standard_normal((N, V)), random.integers(0, V, N)
    loss, cache = ops.cross_entropy_forward(logits, targets)
    assert_same((loss, ops.cross_entropy_backward(dloss, cache)), longhand_cross_entropy(logits, targets, dloss))


@given(seeds(), sizes(5), sizes(7))
def test_softmax(ops, seed, N, K):
    random = np.random.default_rng(seed)
    x, dy = random.standard_normal((N, K)), random.standard_normal((N, K))
    y, cache = ops.softmax_forward(x)
    assert_same((y, ops.softmax_backward(dy, cache)), longhand_softmax(x, dy))


@given(seeds(), sizes(5), sizes(7))
def test_gelu(ops, seed, N, C):
    random = np.random.default_rng(seed)
    x, dy = 2 * random.standard_normal((N, C)), random.standard_normal((N, C))
    y, cache = ops.gelu_forward(x)
    assert_same((y, ops.gelu_backward(dy, cache)), longhand_gelu(x, dy))


def dropout_factors(shape, p, key):
    """What dropout multiplies each entry with: 0 or inv_keep, and 1 where nothing is dropped."""
    drawn = draw_mask(np, shape, p, key)
    if drawn is None:
        return np.ones(shape)
    mask, inv_keep = drawn
    return mask * inv_keep


@given(seeds(), sizes(3), sizes(5), sizes(3), sizes(4), drops())
def test_attention(ops, seed, B, T, H, D, dropout):
    random = np.random.default_rng(seed)
    qkv, dy = random.standard_normal((B, T, 3 * H * D)), random.standard_normal((B, T, H * D))
    y, cache = ops.attention_forward(qkv, H, **dropout)
    factors = dropout_factors((B, H, T, T), **dropout)
    assert_same((y, ops.attention_backward(dy, cache)), longhand_attention(qkv, H, factors, dy))


@given(seeds(), sizes(3), sizes(6), drops())
def test_dscores_is_probs_times_dy_along_the_value_minus_y(ops, seed, B, T, dropout):
    """dscores_ts = probs_ts dy_t . (m_ts v_s - y_t), where m is mask inv_keep, or 1 without dropout.

    With D = T and k = sqrt(D) times the identity, the scores are q itself, so attention's dq is its dscores.
    """
    random = np.random.default_rng(seed)
    q, v, dy = random.standard_normal((3, B, T, T))
    k = np.broadcast_to(np.sqrt(T) * np.eye(T), (B, T, T))
    y, cache = ops.attention_forward(np.concatenate([q, k, v], axis=-1), 1, **dropout)
    dscores = ops.attention_backward(dy, cache)[..., :T]

    probs, _ = softmax_forward(np.where(np.tri(T, dtype=bool), q, -np.inf))
    m = dropout_factors((B, 1, T, T), **dropout)[:, 0]  # (B, T, T), query t and key s
    value_minus_y = m[..., None] * v[:, None, :, :] - y[:, :, None, :]  # (B, T, S, D)
    assert_same([dscores], [probs * (value_minus_y * dy[:, :, None, :]).sum(-1)])
