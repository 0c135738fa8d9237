"""The closed forms of the library against stepwise backward passes, with one d-variable per intermediate value.

Each oracle takes the smallest possible steps: one operation per line, and its backward in one line, in reverse order. It is slow to
run, hard to get wrong, and shows which step of a closed form is at fault.
"""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cases import every_backend
from tensorlite.testing.properties import gains, seeds, sizes

pytestmark = every_backend
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def stepwise_layernorm(x, w, b, eps, dy):
    C = x.shape[-1]
    total = x.sum(-1, keepdims=True)
    mean = total / C
    centered = x - mean
    square = centered**2
    square_total = square.sum(-1, keepdims=True)
    var = square_total / C
    shifted = var + eps
    std = np.sqrt(shifted)
    rstd = 1 / std
    xhat = centered * rstd
    scaled = xhat * w
    y = scaled + b

    dscaled = dy
    db = dy.sum(0)
    dxhat = dscaled * w
    dw = (dscaled * xhat).sum(0)
    dcentered = dxhat * rstd
    drstd = (dxhat * centered).sum(-1, keepdims=True)
    dstd = drstd * -1 / std**2
    dshifted = dstd * 0.5 / std
    dvar = dshifted
    dsquare_total = dvar / C
    dsquare = np.broadcast_to(dsquare_total, x.shape)
    dcentered = dcentered + dsquare * 2 * centered
    dx = dcentered.copy()
    dmean = -dcentered.sum(-1, keepdims=True)
    dtotal = dmean / C
    dx += np.broadcast_to(dtotal, x.shape)
    return y, dx, dw, db


@given(seeds(), sizes(4), st.integers(2, 8), st.sampled_from([1e-5, 0.1]))
def test_layernorm(ops, seed, N, C, eps):
    random = np.random.default_rng(seed)
    x = random.standard_normal((N, C)) + np.arange(C)  # nearly constant rows lose digits in any formula
    w, b, dy = gains(random, C), random.standard_normal(C), random.standard_normal((N, C))
    y, cache = ops.layernorm_forward(x, w, b, eps)
    for found, expected in zip((y, *ops.layernorm_backward(dy, cache)), stepwise_layernorm(x, w, b, eps, dy), strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)


def stepwise_cross_entropy(logits, targets, dloss):
    N = len(targets)
    rows = np.arange(N)
    top = logits.max(-1, keepdims=True)
    shifted = logits - top
    counts = np.exp(shifted)
    counts_sum = counts.sum(-1, keepdims=True)
    inverse = 1 / counts_sum
    probs = counts * inverse
    logprobs = np.log(probs)
    picked = logprobs[rows, targets]
    loss = -picked.sum() / N

    dpicked = np.full(N, -dloss / N)
    dlogprobs = np.zeros_like(logprobs)
    dlogprobs[rows, targets] = dpicked
    dprobs = dlogprobs / probs
    dcounts = dprobs * inverse
    dinverse = (dprobs * counts).sum(-1, keepdims=True)
    dcounts_sum = dinverse * -1 / counts_sum**2
    dcounts = dcounts + np.broadcast_to(dcounts_sum, counts.shape)
    dshifted = dcounts * counts
    dlogits = dshifted.copy()
    dtop = -dshifted.sum(-1, keepdims=True)
    dlogits[rows, logits.argmax(-1)] += dtop[:, 0]
    return loss, dlogits


@given(seeds(), sizes(5), sizes(7), st.sampled_from([1.0, -0.3]))
def test_cross_entropy(ops, seed, N, V, dloss):
    random = np.random.default_rng(seed)
    logits, targets = random.standard_normal((N, V)), random.integers(0, V, N)
    loss, cache = ops.cross_entropy_forward(logits, targets)
    expected_loss, expected = stepwise_cross_entropy(logits, targets, dloss)
    np.testing.assert_allclose(loss, expected_loss, **CLOSE)
    np.testing.assert_allclose(ops.cross_entropy_backward(dloss, cache), expected, **CLOSE)


def stepwise_softmax(x, dy):
    top = x.max(-1, keepdims=True)
    shifted = x - top
    e = np.exp(shifted)
    total = e.sum(-1, keepdims=True)
    inverse = 1 / total
    y = e * inverse

    de = dy * inverse
    dinverse = (dy * e).sum(-1, keepdims=True)
    dtotal = dinverse * -1 / total**2
    de = de + np.broadcast_to(dtotal, e.shape)
    dshifted = de * e
    dx = dshifted.copy()
    dtop = -dshifted.sum(-1, keepdims=True)
    np.put_along_axis(dx, x.argmax(-1, keepdims=True), np.take_along_axis(dx, x.argmax(-1, keepdims=True), -1) + dtop, -1)
    return y, dx


@given(seeds(), sizes(5), sizes(7))
def test_softmax(ops, seed, N, K):
    random = np.random.default_rng(seed)
    x, dy = random.standard_normal((N, K)), random.standard_normal((N, K))
    y, cache = ops.softmax_forward(x)
    for found, expected in zip((y, ops.softmax_backward(dy, cache)), stepwise_softmax(x, dy), strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)


def stepwise_gelu(x, dy):
    square = x * x
    cube = square * x
    small = 0.044715 * cube
    inner = x + small
    u = math.sqrt(2 / math.pi) * inner
    t = np.tanh(u)
    one_more = 1 + t
    half = 0.5 * x
    y = half * one_more

    dhalf = dy * one_more
    done_more = dy * half
    dx = 0.5 * dhalf
    dt = done_more
    du = dt * (1 - t**2)
    dinner = math.sqrt(2 / math.pi) * du
    dx = dx + dinner
    dsmall = dinner
    dcube = 0.044715 * dsmall
    dsquare = dcube * x
    dx = dx + dcube * square
    dx = dx + dsquare * 2 * x
    return y, dx


@given(seeds(), sizes(5), sizes(7))
def test_gelu(ops, seed, N, C):
    random = np.random.default_rng(seed)
    x, dy = 2 * random.standard_normal((N, C)), random.standard_normal((N, C))
    y, cache = ops.gelu_forward(x)
    for found, expected in zip((y, ops.gelu_backward(dy, cache)), stepwise_gelu(x, dy), strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)


def stepwise_attention(qkv, H, dy):
    """One query of one head of one sequence at a time: no batched matmul, no transpose of four axes."""
    B, T, C3 = qkv.shape
    C, D = C3 // 3, C3 // 3 // H
    y, dqkv = np.zeros((B, T, C)), np.zeros_like(qkv)
    for b in range(B):
        for h in range(H):
            q_at, k_at, v_at = (slice(part * C + h * D, part * C + (h + 1) * D) for part in range(3))
            out = slice(h * D, (h + 1) * D)
            for t in range(T):
                q, k, v = qkv[b, t, q_at], qkv[b, : t + 1, k_at], qkv[b, : t + 1, v_at]
                dots = k @ q
                scores = dots / math.sqrt(D)
                probs, _ = stepwise_softmax(scores, scores)
                y[b, t, out] = probs @ v

                do = dy[b, t, out]
                dprobs = v @ do
                dv = np.outer(probs, do)
                _, dscores = stepwise_softmax(scores, dprobs)
                ddots = dscores / math.sqrt(D)
                dk = np.outer(ddots, q)
                dq = ddots @ k
                dqkv[b, t, q_at] += dq
                dqkv[b, : t + 1, k_at] += dk
                dqkv[b, : t + 1, v_at] += dv
    return y, dqkv


@given(seeds(), sizes(3), sizes(5), sizes(3), sizes(4))
def test_attention(ops, seed, B, T, H, D):
    random = np.random.default_rng(seed)
    qkv, dy = random.standard_normal((B, T, 3 * H * D)), random.standard_normal((B, T, H * D))
    y, cache = ops.attention_forward(qkv, H)
    for found, expected in zip((y, ops.attention_backward(dy, cache)), stepwise_attention(qkv, H, dy), strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)
