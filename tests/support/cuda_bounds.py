"""How far a result of the CUDA backend may be from the reference in float64: roundings, counted.

Both sides start from the same values, which the precision can hold. Every value the kernels store is a sum of terms, and every
term has an error of some roundings of its size. One rounding is at most UNIT of what is rounded: half of the last bit. So

    |found - expected| <= UNIT[dtype] |expected| + inexact

where the first part is the rounding of the stored value itself and `inexact` is what its terms were off by. Per op, the functions
below give `inexact` for the value and each gradient, as arrays: a small entry has a small bound, however large its neighbours are.

The factors in front of the sizes are counts of roundings, or constants set by what was measured: the tests keep the worst error of
each op over all draws between 1/4 of its bound and the bound itself, so that no bound can be loosened.
"""

import math

import ml_dtypes
import numpy as np

from tensorlite import ReferenceOps

BF16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
UNIT = {FLOAT32: 2.0**-24, BF16: 2.0**-8}
F = UNIT[FLOAT32]  # what all arithmetic is done in
TINY = 2.0**-120  # below 2^-126 floats lose bits, or become zero; then they are multiplied
REFERENCE = ReferenceOps()


def close(found, expected, dtype, inexact=0.0):
    """Assert the bound of the head of this file, and the dtype and shape. Returns the worst error in bounds: 1 is just allowed."""
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    error = np.abs(found.astype(np.float64) - expected)
    allowed = np.broadcast_to(UNIT[np.dtype(dtype)] * np.abs(expected) + inexact, error.shape)
    ratio = np.where(error > TINY, error / np.maximum(allowed, TINY), 0.0)
    ratio = np.where(np.isfinite(found.astype(np.float64)), ratio, np.inf)
    if not ratio.size:
        return 0.0
    at = np.unravel_index(np.argmax(ratio), ratio.shape)
    worst = float(ratio[at])
    assert worst <= 1.0, (
        f"{(ratio > 1).sum()} of {ratio.size} entries are out of bounds, the worst at {tuple(map(int, at))}: {found[at]} "
        f"instead of {expected[at]}, an error of {error[at]:.3g} where {allowed[at]:.3g} is allowed"
    )
    return worst


# ---- sums of terms ----


def added(*terms):
    """The rounding of a float32 sum of terms given by their sizes, one after the other as a matmul adds them.

    Of random signs the partial sums grow as the root of their number, and their roundings add up as random values do. So the
    error grows as the sum of sizes does: the worst of a million sums is 2 roundings of it for 5 terms, 5 for 130, 3 for 400.
    """
    return 6 * F * sum(terms)


def summed(x):
    """The same of a sum over rows, of which each part is short: a warp's, a block's, a lane's."""
    return 3 * F * np.abs(flat(x)).sum(0)


def matmul_terms(a, b):
    """Sizes of the terms of a matmul, summed."""
    return np.abs(a) @ np.abs(b)


def through(errors, w):
    """What errors of a make of a w. In the worst case they all add; of many, each on its own, five sigma are less."""
    return np.minimum(np.abs(errors) @ np.abs(w), 3.0 * np.sqrt(errors**2 @ w**2))


def usual(bound):
    """Of errors that add up in a later sum it is not the largest that counts but the usual one."""
    return bound / 3


def t(x):
    """The transpose of the last two axes."""
    return np.swapaxes(x, -1, -2)


def flat(x):
    """(N, C): the rows of x."""
    return x.reshape(-1, x.shape[-1])


# ---- ops: what the value, and each gradient in the op's order, are off by before they are stored ----


def linear(x, w, b, dy, unfused_unit=0.0):
    """Products of two bf16 values are exact in float32, those of float32 values round: the sums are what counts.

    unfused_unit: the UNIT of the GEMM's output that is stored, and rounded, before a kernel of its own adds the bias.
    """
    y = added(matmul_terms(x, w), 0 if b is None else np.abs(b)) + (0 if b is None else unfused_unit * np.abs(x @ w))
    return y, added(matmul_terms(dy, w.T)), *weights_of(x, dy, b)


def weights_of(x, dy, b, off=None):
    """dw and db of a linear layer whose dy is off by so much already."""
    x, dy = flat(x), flat(dy)
    off = np.zeros_like(dy) if off is None else flat(off)
    dw, db = t(through(t(off), x)) + added(matmul_terms(t(x), dy)), through(np.ones((1, len(x))), off)[0] + summed(dy)
    return dw, None if b is None else db


def embedding(ids, table, dy):
    """A lookup is exact; the gradient is a matmul with zeros and ones."""
    onehot = ids.reshape(-1, 1) == np.arange(len(table))
    return 0.0, added(matmul_terms(onehot.T, flat(dy)))


def position_embedding(x, wpe, start, dy):
    """One sum, rounded when it is stored; dx is dy."""
    T, C = x.shape[-2:]
    dwpe = np.zeros_like(wpe)
    dwpe[start : start + T] = summed(dy.reshape(-1, T * C)).reshape(T, C)
    return 0.0, 0.0, dwpe


def dropout(x, dy, p=0.0, key=None):
    """inv_keep rounds."""
    y, cache = REFERENCE.dropout_forward(x, p, key)
    return F * np.abs(y), F * np.abs(REFERENCE.dropout_backward(dy, cache))


def residual(x, y, dy, p=0.0, key=None):
    """inv_keep rounds, and so does the multiplication by it; dx is dy."""
    forward, backward = dropout(y, dy, p, key)
    return 2 * forward, 0.0, backward


def gelu(x, dy, one=2.0**-53):
    """exp(-2u) is off by the roundings of 2u, relatively, and s = 1 / (1 + exp) by those where exp is not small beside 1.

    1 - s, which the slope has, is off by the rounding of s. And the reference itself, which takes 1 + tanh and 1 - tanh^2, is
    off by float64's rounding of the 1. one: that rounding, for a library that does the same in float32.
    """
    u, du = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    s = (1 + np.tanh(u)) / 2
    off = 4 * F * (1 + 2 * np.abs(u) * (1 - s))  # of s, relatively
    times = np.abs(x) * du  # what a difference from 1 is multiplied by
    dx = off * (s + 2 * s * (1 - s) * times) + 1.5 * F * s * 2 * times + one * (1 + times)
    return off * np.abs(x * s) + one * np.abs(x), np.abs(dy) * dx


def layernorm(x, w, b, dy, eps=1e-5, skip=None):
    """xhat is off by the rounding of the mean, of x - mean and of rstd; the means of dx are float32 sums."""
    mean, rstd = x.mean(-1, keepdims=True), 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    xhat, g = (x - mean) * rstd, dy * w
    off = F * (3 * np.abs(xhat) + 4 * rstd * np.abs(x).mean(-1, keepdims=True))  # of xhat
    mean_g, mean_gx = (np.abs(a).mean(-1, keepdims=True) for a in (g, g * xhat))
    dx = rstd * (3.5 * F * (np.abs(g) + mean_g + np.abs(xhat) * mean_gx) + off * np.abs((g * xhat).mean(-1, keepdims=True)))
    dw = through(np.ones((1, flat(x).shape[0])), flat(dy * off))[0] + summed(dy * xhat)
    y = np.abs(w) * off + F * (np.abs(xhat * w) + (0 if b is None else np.abs(b)))
    return y, dx + (0 if skip is None else F * np.abs(skip)), dw, summed(dy)


def attention(qkv, n_head, dy, y_dtype, rounds_p, p=0.0, key=None):
    """y and dqkv. The scores' sums round, and p by as much as its exponent, relatively; on tensor cores p is rounded to bf16.

    delta = dy . y is computed from the stored y. An error of it is the same for all keys of a row.
    """
    B, T, C3 = qkv.shape
    C, D = C3 // 3, C3 // 3 // n_head
    q, k, v = qkv.reshape(B, T, 3, n_head, D).transpose(2, 0, 3, 1, 4)
    y, (_, _, probs, mask) = REFERENCE.attention_forward(qkv, n_head, p, key)
    y, dy = (a.reshape(B, T, n_head, D).transpose(0, 2, 1, 3) for a in (y, dy))
    scale, bf16 = 1 / math.sqrt(D), UNIT[BF16] if rounds_p else 0.0
    p_dropped = probs if mask is None else np.where(mask[0], mask[1], 0.0) * probs
    exponent = np.abs(np.log(np.maximum(probs, 1e-99)))
    off = F * (2 * scale * matmul_terms(q, t(k)) + exponent + 1)  # of exp(score), relatively
    off = off + (probs * off).sum(-1, keepdims=True)  # and of p, which the sum of the row divides
    out = through(off * p_dropped, v) + through(bf16 * p_dropped, v) + added(matmul_terms(p_dropped, v))

    dp_dropped = dy @ t(v)
    dp = dp_dropped if mask is None else np.where(mask[0], mask[1], 0.0) * dp_dropped
    delta = (dy * y).sum(-1, keepdims=True)
    ds = probs * (dp - delta)
    off_delta = UNIT[np.dtype(y_dtype)] * through(np.abs(dy * y), np.ones((D, 1))) + added(np.abs(dy * y).sum(-1, keepdims=True))
    off_ds = off * np.abs(ds) + probs * added(matmul_terms(dy, t(v)), np.abs(delta)) + bf16 * np.abs(ds)
    dq = scale * (through(off_ds, k) + off_delta * np.abs(probs @ k) + added(matmul_terms(ds, k)))
    dk = scale * (through(t(off_ds), q) + through(t(off_delta * probs), q) + added(matmul_terms(t(ds), q)))
    dv = through(t(off * p_dropped + bf16 * p_dropped), dy) + added(matmul_terms(t(p_dropped), dy))
    dqkv = np.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4).reshape(B, T, C3)
    return out.transpose(0, 2, 1, 3).reshape(B, T, C), dqkv


def cross_entropy(logits, targets, dloss, off=0.0):
    """The loss is a mean of float32 values of the size of lse; p is off by the rounding of its exponent, relatively.

    off: of the logits.
    """
    z, N, p, lse = softmax(logits)
    off_p = p * (F * (np.abs(lse - z) + np.abs(lse) + 2) + off + (p * off).sum(-1, keepdims=True)) + F
    loss = 1.5 * F * (np.abs(lse) + np.abs(z).max(-1, keepdims=True)).mean()
    loss += 2 * np.sqrt(np.square(usual(off) * np.ones_like(z)).mean(-1).sum()) / N
    return loss, off_p.reshape(logits.shape) * np.abs(dloss) / N


def softmax(logits):
    """The rows of the logits, how many, their softmax and its lse."""
    z = flat(logits)
    max_logit = z.max(-1, keepdims=True)
    lse = max_logit + np.log(np.exp(z - max_logit).sum(-1, keepdims=True))
    return z, len(z), np.exp(z - lse), lse


# ---- composites that are one kernel, or one GEMM: what is rounded on the way counts on ----


def mlp(x, fc_w, fc_b, proj_w, proj_b, dy, dtype, unfused_unit=0.0):
    """h is saved rounded, for backward; gelu(h) and dh are rounded as operands of the next GEMM."""
    unit = UNIT[np.dtype(dtype)]
    h = x @ fc_w + (0 if fc_b is None else fc_b)
    a, slope = REFERENCE.gelu_forward(h)[0], REFERENCE.gelu_backward(np.ones_like(h), h)
    curve = (REFERENCE.gelu_backward(np.ones_like(h), h + 1e-4) - REFERENCE.gelu_backward(np.ones_like(h), h - 1e-4)) / 2e-4
    off_h = usual(added(matmul_terms(x, fc_w), 0 if fc_b is None else np.abs(fc_b))) + unfused_unit * np.abs(x @ fc_w)
    off_gelu, off_slope = map(usual, gelu(h, np.ones_like(h))) if unfused_unit else gelu(h, np.ones_like(h), F)
    off_a = unit * np.abs(a) + np.abs(slope) * (off_h + unfused_unit * np.abs(h)) + off_gelu
    y = through(off_a, proj_w) + linear(a, proj_w, proj_b, dy, unfused_unit)[0]
    da = dy @ proj_w.T
    off_da = usual(added(matmul_terms(dy, proj_w.T))) + unfused_unit * np.abs(da)
    off_slope = off_slope + np.abs(curve) * (unit * np.abs(h) + off_h)
    off_dh = unit * np.abs(da * slope) + off_da * np.abs(slope) + np.abs(da) * off_slope
    dx = through(off_dh, fc_w.T) + added(matmul_terms(da * slope, fc_w.T))
    dproj_w = through(t(flat(off_a)), flat(dy)) + weights_of(a, dy, proj_b)[0]
    dfc = weights_of(x, da * slope, fc_b, off_dh)
    return y, dx, *dfc, dproj_w, weights_of(a, dy, proj_b)[1]


def linear_cross_entropy(x, w, b, targets, dloss, dtype):
    """The logits are float32 in any precision; their gradient is rounded as an operand."""
    logits = x @ w + (0 if b is None else b)
    off = added(matmul_terms(flat(x), w), 0 if b is None else np.abs(b))
    loss, off_z = cross_entropy(logits, targets, dloss, off)
    dz = REFERENCE.cross_entropy_backward(dloss, REFERENCE.cross_entropy_forward(logits, targets)[1])
    off_z = usual(off_z) + UNIT[np.dtype(dtype)] * np.abs(dz)
    return loss, through(off_z, w.T) + added(matmul_terms(dz, w.T)), *weights_of(x, dz, b, off_z)


# ---- whole steps ----


def as_rounded(function, params, dtype, draws=8):
    """How far the arrays of function(params) may be off: as far as it would move them to round all parameters once.

    What is rounded within a step is as many values as large, so a step is as sensitive to that. Measured: 0.2 to 1 of this for
    bf16; 1 to 3 for float32, whose matmuls round each term besides. Returns function(params) and the bounds, one for each array.
    """
    unit, times, random = UNIT[np.dtype(dtype)], 4 if dtype == FLOAT32 else 1.5, np.random.default_rng(0)
    exact = function(params)
    bounds = [unit * np.abs(a).max() for a in exact]
    moved = [function(params * (1 + unit * random.uniform(-1, 1, params.shape))) for _ in range(draws)]
    return exact, [times * (own + max(np.abs(m[i] - exact[i]).max() for m in moved)) for i, own in enumerate(bounds)]
