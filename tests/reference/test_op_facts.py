"""Facts about single ops that finite differences cannot see, because the backward would follow a wrong forward."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import references
from cases import every_backend
from tensorlite import Key, KVCache
from tensorlite.testing.properties import gains, seeds, sizes

pytestmark = every_backend
KEY = Key(123, 456)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


# linear


@given(seeds(), sizes(6), sizes(6), sizes(6))
def test_linear_adjoint_identity(ops, seed, N, C, D):
    """<dy, x w> = <dy w^T, x> = <x^T dy, w>: backward is the transpose of forward."""
    x, w, dy = normal(seed, N, C), normal(seed + 1, C, D), normal(seed + 2, N, D)
    y, cache = ops.linear_forward(x, w)
    dx, dw, db = ops.linear_backward(dy, cache)
    assert db is None
    assert np.isclose((dy * y).sum(), (dx * x).sum(), rtol=1e-12, atol=1e-12)
    assert np.isclose((dy * y).sum(), (dw * w).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "w", "b", "words"),
    [
        ((2, 7, 3), (4, 5), None, "x has 3 channels, w (4, 5) takes 4"),
        ((2, 3), (3, 5), (1,), "b (1,) does not fit w (3, 5)"),
        ((2, 3), (3, 5), (3,), "b (3,) does not fit w (3, 5)"),
    ],
)
def test_linear_refuses_shapes_that_do_not_fit(ops, x, w, b, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ops.linear_forward(np.ones(x), np.ones(w), None if b is None else np.ones(b))


# embeddings


def test_embedding_adds_repeated_ids_and_leaves_unused_rows_zero(ops):
    dy = normal(0, 4, 3)
    _, cache = ops.embedding_forward(np.array([2, 0, 2, 2]), normal(1, 4, 3))
    dtable = ops.embedding_backward(dy, cache)
    np.testing.assert_allclose(dtable[2], dy[0] + dy[2] + dy[3], rtol=1e-15)
    np.testing.assert_array_equal(dtable[0], dy[1])
    assert not dtable[[1, 3]].any()


def test_positions_refuse_to_run_out(ops):
    for start in (2, -1, -3):
        with pytest.raises(ValueError, match=f"positions {start} to {start + 2} do not fit a context of 4"):
            ops.position_embedding_forward(np.ones((1, 3, 2)), np.ones((4, 2)), start)
    with pytest.raises(ValueError, match="x has 2 channels, wpe 1"):
        ops.position_embedding_forward(np.ones((1, 5, 3, 2)), np.ones((4, 1)))


def test_positions_start_at_zero(ops):
    x, wpe = normal(0, 2, 3, 4), normal(1, 5, 4)
    np.testing.assert_array_equal(ops.position_embedding_forward(x, wpe)[0], x + wpe[:3])


def test_positions_outside_the_window_get_no_gradient(ops):
    _, cache = ops.position_embedding_forward(normal(0, 2, 3, 2), normal(1, 8, 2), 2)
    _, dwpe = ops.position_embedding_backward(normal(2, 2, 3, 2), cache)
    assert dwpe[2:5].all()
    assert not dwpe[:2].any()
    assert not dwpe[5:].any()


# layernorm


@given(seeds(), sizes(4), st.integers(2, 7), st.floats(0.1, 10.0), st.floats(-5, 5))
def test_layernorm_ignores_scale_and_shift(ops, seed, N, C, a, c):
    """layernorm(a x + c) = layernorm(x) for a > 0, when eps is scaled by a^2."""
    x, w, b = normal(seed, N, C), gains(np.random.default_rng(seed), C), normal(seed + 1, C)
    y, _ = ops.layernorm_forward(x, w, b, 1e-5)
    y2, _ = ops.layernorm_forward(a * x + c, w, b, 1e-5 * a * a)
    np.testing.assert_allclose(y2, y, rtol=1e-8, atol=1e-8)


@given(seeds(), sizes(4), st.integers(2, 7), st.sampled_from([1e-5, 0.1]))
def test_layernorm_gradient_has_lost_two_directions(ops, seed, N, C, eps):
    """Rows of dx sum to 0, and sum(dx xhat) = rstd eps / (var + eps) sum(g xhat)."""
    x, w, dy = normal(seed, N, C), gains(np.random.default_rng(seed), C), normal(seed + 2, N, C)
    _, cache = ops.layernorm_forward(x, w, None, eps)
    dx, _, _ = ops.layernorm_backward(dy, cache)
    var = x.var(axis=-1)
    rstd = 1 / np.sqrt(var + eps)
    xhat = (x - x.mean(axis=-1, keepdims=True)) * rstd[:, None]
    np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=1e-10 * rstd.max() * 10)
    expected = rstd * eps / (var + eps) * (dy * w * xhat).sum(axis=-1)
    np.testing.assert_allclose((dx * xhat).sum(axis=-1), expected, rtol=1e-7, atol=1e-9 * rstd.max())


def test_layernorm_has_the_usual_eps(ops):
    x, w = normal(0, 3, 5) * 1e-3, np.ones(5)
    np.testing.assert_array_equal(ops.layernorm_forward(x, w)[0], ops.layernorm_forward(x, w, None, 1e-5)[0])
    assert not np.allclose(ops.layernorm_forward(x, w)[0], ops.layernorm_forward(x, w, None, 1e-6)[0])


def test_layernorm_of_a_constant_row_is_finite(ops):
    y, cache = ops.layernorm_forward(np.full((2, 5), 3.0), np.ones(5), np.zeros(5))
    np.testing.assert_allclose(y, 0, atol=1e-12)  # the mean is rounded, and rstd is 316 here
    assert all(np.isfinite(g).all() for g in ops.layernorm_backward(normal(0, 2, 5), cache))


def test_layernorm_survives_a_large_mean(ops):
    """The variance takes two passes; E[x^2] - E[x]^2 would lose all digits here."""
    x, w = normal(0, 3, 8), np.ones(8)
    y, _ = ops.layernorm_forward(x, w)
    np.testing.assert_allclose(ops.layernorm_forward(x + 1e6, w)[0], y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("w", "b"), [((1,), None), ((5,), (1,)), ((4,), None)])
def test_layernorm_refuses_shapes_that_would_broadcast(ops, w, b):
    words = re.escape(f"x (2, 3, 5) needs w and b of shape (5,), got {w} and {b}")
    with pytest.raises(ValueError, match=words):
        ops.layernorm_forward(np.ones((2, 3, 5)), np.ones(w), None if b is None else np.ones(b))


# softmax, GELU, ReLU


@given(seeds(), sizes(4), sizes(6), st.sampled_from([-1e4, 0.0, 1e4]))
def test_softmax_rows_sum_to_one_and_ignore_a_shift(ops, seed, N, K, shift):
    x = normal(seed, N, K)
    y, cache = ops.softmax_forward(x + shift)
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(y, ops.softmax_forward(x)[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ops.softmax_backward(normal(seed + 1, N, K), cache).sum(axis=-1), 0, atol=1e-14)


def test_softmax_of_nothing_is_refused(ops):
    with pytest.raises(ValueError, match="empty"):
        ops.softmax_forward(np.ones((2, 3, 0)))


@given(st.floats(-1e4, 1e4))
def test_gelu_is_its_own_mirror(ops, v):
    """gelu(x) - gelu(-x) = x, and both value and gradient stay finite far out."""
    x = np.array([v, -v])
    y, cache = ops.gelu_forward(x)
    assert math.isclose(y[0] - y[1], v, rel_tol=1e-12, abs_tol=1e-300)
    assert np.isfinite(ops.gelu_backward(np.ones(2), cache)).all()


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_activations_pass_nan_on(ops, act):
    """A layer that swallows a NaN hides its cause."""
    y, _ = ops.activation_forward(np.array([np.nan, 1.0]), act)
    assert np.isnan(y[0])


def test_relu_chooses_zero_at_zero(ops):
    y, cache = ops.relu_forward(np.array([-1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(y, [0, 0, 2])
    np.testing.assert_array_equal(ops.relu_backward(np.array([5.0, 6.0, 7.0]), cache), [0, 0, 7])


# attention


@st.composite
def attentions(draw):
    B, T, H, D = draw(sizes(3)), draw(st.integers(2, 6)), draw(sizes(3)), draw(sizes(4))
    return normal(draw(seeds()), B, T, 3 * H * D), H


@given(attentions(), st.data())
def test_attention_cannot_see_the_future(ops, case, data):
    """Outputs up to t do not depend on inputs after t, bit for bit; a dy up to t gives inputs after t a gradient of exactly 0."""
    qkv, H = case
    t = data.draw(st.integers(0, qkv.shape[1] - 2))
    y, cache = ops.attention_forward(qkv, H)
    changed = qkv.copy()
    changed[:, t + 1 :] = normal(99, *changed[:, t + 1 :].shape)
    np.testing.assert_array_equal(ops.attention_forward(changed, H)[0][:, : t + 1], y[:, : t + 1])
    dy = normal(98, *y.shape)
    dy[:, t + 1 :] = 0
    assert not ops.attention_backward(dy, cache)[:, t + 1 :].any()


@given(attentions())
def test_attention_at_position_zero_is_the_first_value(ops, case):
    qkv, H = case
    C = qkv.shape[-1] // 3
    np.testing.assert_allclose(ops.attention_forward(qkv, H)[0][:, 0], qkv[:, 0, 2 * C :], rtol=1e-14)


@given(attentions())
def test_attention_with_equal_scores_is_the_running_mean(ops, case):
    qkv, H = case
    C = qkv.shape[-1] // 3
    qkv = qkv.copy()
    qkv[..., :C] = 0
    mean = np.cumsum(qkv[..., 2 * C :], axis=1) / np.arange(1, qkv.shape[1] + 1)[:, None]
    np.testing.assert_allclose(ops.attention_forward(qkv, H)[0], mean, rtol=1e-12, atol=1e-13)


@given(attentions())
def test_attention_scale_is_one_over_root_d(ops, case):
    """With two positions, the ratio of the probabilities reveals the scale."""
    qkv, H = case
    C = qkv.shape[-1] // 3
    D = C // H
    one = qkv[:1, :2].copy()
    one[..., 2 * C :] = 0
    one[:, 1, 2 * C :] = 1  # y at position 1 is then its probability of attending to itself
    p = ops.attention_forward(one, H)[0][0, 1, ::D]
    q, k = one[0, 1, :C].reshape(H, D), one[0, :, C : 2 * C].reshape(2, H, D)
    gap = ((q * k[1]).sum(-1) - (q * k[0]).sum(-1)) / math.sqrt(D)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-gap)), rtol=1e-10)


@given(attentions(), seeds())
def test_attention_heads_are_independent(ops, case, seed):
    """Permuting the heads of q, k and v permutes the heads of y."""
    qkv, H = case
    B, T, C3 = qkv.shape
    order = np.random.default_rng(seed).permutation(H)
    permuted = qkv.reshape(B, T, 3, H, -1)[:, :, :, order].reshape(B, T, C3)
    y = ops.attention_forward(qkv, H)[0].reshape(B, T, H, -1)
    np.testing.assert_allclose(ops.attention_forward(permuted, H)[0].reshape(B, T, H, -1), y[:, :, order], rtol=1e-13, atol=1e-14)


@given(attentions())
def test_a_bias_on_the_keys_could_learn_nothing(ops, case):
    """One vector added to all keys shifts each row of scores, which softmax ignores, so dk sums to 0 over T."""
    qkv, H = case
    C = qkv.shape[-1] // 3
    y, cache = ops.attention_forward(qkv, H)
    dqkv = ops.attention_backward(normal(5, *y.shape), cache)
    np.testing.assert_allclose(dqkv[..., C : 2 * C].sum(axis=1), 0, atol=1e-12 * max(1.0, np.abs(dqkv).max()))


@given(attentions(), st.data())
def test_attention_in_pieces_equals_attention_at_once(ops, case, data):
    """With a KV cache, feeding the text in pieces gives the outputs of the whole text."""
    qkv, H = case
    T = qkv.shape[1]
    cut = data.draw(st.integers(1, T - 1))
    kv_cache = KVCache(1, T).layers[0]
    pieces = [ops.attention_forward(part, H, 0.0, None, kv_cache)[0] for part in (qkv[:, :cut], qkv[:, cut:])]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), ops.attention_forward(qkv, H)[0], rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match=f"{T + 1} positions do not fit a context of {T}"):
        ops.attention_forward(qkv[:, :1], H, 0.0, None, kv_cache)


def test_a_cache_of_keys_is_that_of_one_batch(ops):
    qkv, kv_cache = normal(0, 3, 2, 12), KVCache(1, 4).layers[0]
    ops.attention_forward(qkv, 2, 0.0, None, kv_cache)
    with pytest.raises(ValueError, match=r"k \(1, 2, 1, 2\) does not continue a cache of \(3, 2, 4, 2\)"):
        ops.attention_forward(qkv[:1, :1], 2, 0.0, None, kv_cache)
    assert kv_cache.length == 2


def test_a_text_without_a_window_has_no_batch(ops):
    assert ops.get_batch(np.arange(4), ops.step_key(1, 2), 2, 3)[1].tolist() == [[1, 2, 3]] * 2
    with pytest.raises(ValueError, match="a text of 3 tokens has no window of 3 and a target"):
        ops.get_batch(np.arange(3), ops.step_key(1, 2), 2, 3)


def test_a_cache_keeps_the_dtype(ops):
    kv_cache = KVCache(2, 4)
    assert kv_cache.length == 0
    y, cache = ops.attention_forward(normal(0, 1, 2, 12).astype(np.float32), 2, 0.0, None, kv_cache.layers[0])
    assert y.dtype == np.float32
    assert cache is None
    assert kv_cache.length == 2
    k, v = kv_cache.layers[0].extend(np.ones((1, 2, 1, 2), np.float32), np.ones((1, 2, 1, 2), np.float32))
    assert k.dtype == v.dtype == np.float32
    assert k.shape == (1, 2, 3, 2)


def test_attention_refuses_channels_that_do_not_split(ops):
    with pytest.raises(ValueError, match="4 heads"):
        ops.attention_forward(np.ones((1, 2, 15)), 4)
    with pytest.raises(ValueError, match="8 channels do not split into q, k, v of 4 heads"):
        ops.attention_forward(np.ones((1, 2, 8)), 4)
    with pytest.raises(ValueError, match="0 heads"):
        ops.attention_forward(np.ones((1, 2, 12)), 0)


def test_attention_drops_probabilities_not_outputs(ops):
    """The mask is drawn over (B, H, T, T) and a dropped probability is not redistributed."""
    qkv = normal(0, 2, 5, 12)
    y, _ = ops.attention_forward(qkv, 2, 0.5, KEY)
    np.testing.assert_allclose(y, references.attention(qkv, 2, 0.5, KEY), rtol=1e-12)
    assert not np.allclose(y, ops.attention_forward(qkv, 2)[0])


# cross-entropy


@given(seeds(), sizes(5), sizes(7))
def test_cross_entropy_gradient_rows_sum_to_zero(ops, seed, N, V):
    targets = np.random.default_rng(seed).integers(0, V, N)
    _, cache = ops.cross_entropy_forward(normal(seed, N, V), targets)
    np.testing.assert_allclose(ops.cross_entropy_backward(1.0, cache).sum(axis=-1), 0, atol=1e-15)


@given(sizes(5), sizes(70), st.floats(-100, 100))
def test_cross_entropy_of_uniform_logits_is_log_v(ops, N, V, value):
    loss, _ = ops.cross_entropy_forward(np.full((N, V), value), np.zeros(N, int))
    assert math.isclose(loss, math.log(V), abs_tol=1e-12)


@given(seeds(), sizes(3), sizes(3), sizes(5))
def test_cross_entropy_does_not_mind_the_leading_axes(ops, seed, B, T, V):
    logits, targets = normal(seed, B, T, V), np.random.default_rng(seed).integers(0, V, (B, T))
    loss, cache = ops.cross_entropy_forward(logits, targets)
    flat, flat_cache = ops.cross_entropy_forward(logits.reshape(-1, V), targets.reshape(-1))
    assert loss == flat
    d, d_flat = ops.cross_entropy_backward(0.7, cache), ops.cross_entropy_backward(0.7, flat_cache)
    np.testing.assert_array_equal(d.reshape(-1, V), d_flat)


@pytest.mark.parametrize("far", [-1e6, 1e6])
def test_cross_entropy_far_from_zero_is_finite(ops, far):
    """The largest logit must be subtracted exactly before exp; an approximate one would overflow here."""
    logits = np.array([[0.0, 1.0, -1.0]])
    near, _ = ops.cross_entropy_forward(logits, np.array([2]))
    loss, cache = ops.cross_entropy_forward(logits + far, np.array([2]))
    assert math.isclose(loss, near, rel_tol=1e-9)
    np.testing.assert_allclose(ops.cross_entropy_backward(1.0, cache).sum(), 0, atol=1e-9)


def test_cross_entropy_of_a_huge_gap_is_finite(ops):
    logits = np.array([[1e4, 0.0], [0.0, -1e4]])
    loss, cache = ops.cross_entropy_forward(logits, np.array([1, 0]))
    assert loss == 5000.0
    assert np.isfinite(ops.cross_entropy_backward(1.0, cache)).all()


@pytest.mark.parametrize(
    ("logits", "targets", "words"),
    [
        ((0, 3), (0,), "the mean of nothing, logits are (0, 3)"),
        ((2, 0), (2,), "the mean of nothing, logits are (2, 0)"),
        ((2, 3), (3,), "logits (2, 3) need targets (2,), got (3,)"),
        ((2, 4, 3), (2, 1), "logits (2, 4, 3) need targets (2, 4), got (2, 1)"),
    ],
)
def test_cross_entropy_refuses_the_mean_of_nothing_and_wrong_shapes(ops, logits, targets, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ops.cross_entropy_forward(np.ones(logits), np.zeros(targets, int))


# dropout and residual


@given(seeds(), st.sampled_from([0.1, 0.2, 0.5, 0.9]))
def test_dropout_keeps_values_scaled_exactly(ops, seed, p):
    x = normal(seed, 8, 16)
    y, cache = ops.dropout_forward(x, p, Key(seed, 7))
    inv_keep = 65536 / (65536 - round(p * 65536))
    kept = y != 0
    assert cache[0].dtype == bool  # one byte per element
    np.testing.assert_array_equal(y[kept], (x * inv_keep)[kept])
    np.testing.assert_array_equal(ops.dropout_backward(np.ones_like(x), cache), kept * inv_keep)


@pytest.mark.parametrize("p", [0.0, 1e-6])
def test_dropout_of_nothing_is_the_identity(ops, p):
    x = normal(0, 3, 4)
    assert ops.dropout_forward(x, p, KEY)[0] is x
    assert ops.dropout_forward(x, 0.5, None)[0] is x


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_refuses_nonsense(ops, p):
    for key in (KEY, None):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            ops.dropout_forward(np.ones((2, 2)), p, key)
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            ops.residual_forward(np.ones((2, 2)), np.ones((2, 2)), p, key)
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            ops.attention_forward(np.ones((1, 2, 6)), 2, p, key)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_dropout_keeps_the_expectation(ops, p):
    """The mean over a million values of 1 is 1 within 5 sigma."""
    y, _ = ops.dropout_forward(np.ones((1000, 1000)), p, KEY)
    assert abs(y.mean() - 1) < 5 * math.sqrt(p / (1 - p) / y.size)


def test_residual_drops_nothing_by_default(ops):
    x, y = normal(0, 2, 3), normal(1, 2, 3)
    np.testing.assert_array_equal(ops.residual_forward(x, y)[0], x + y)
    np.testing.assert_array_equal(ops.residual_forward(x, y, key=KEY)[0], x + y)


def test_residual_refuses_to_broadcast(ops):
    with pytest.raises(ValueError, match="residual"):
        ops.residual_forward(np.ones((2, 3)), np.ones((1, 3)))


def test_add_returns_an_array_of_its_own(ops):
    """Its dtype is the promotion of the two, because gradients of different dtypes may be added."""
    a, b = normal(0, 2, 3), normal(1, 2, 3).astype(np.float32)
    before = a.copy(), b.copy()
    for x, y in ((a, b), (b, a), (b, b), (a, a)):
        total = ops.add(x, y)
        np.testing.assert_array_equal(total, x + y)
        assert total.dtype == (x + y).dtype
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


def test_the_last_token_of_a_large_vocabulary_is_in_range(ops):
    wte = normal(0, 5000, 2)
    np.testing.assert_array_equal(ops.embedding_forward(np.array([0, 4999]), wte)[0], wte[[0, 4999]])
    with pytest.raises(IndexError, match=r"in \[0, 5000\), got 0 to 5000"):
        ops.embedding_forward(np.array([0, 5000]), wte)
