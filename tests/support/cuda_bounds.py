"""Bounds on the distance of a CUDA backend's result from the float64 reference, by counting roundings.

Both sides start from the same values, which the precision can hold. Every value that the kernels store is a sum of terms, and each
term has an error of some roundings of its size. One rounding is at most UNIT of the rounded value, half of its last bit. So

    |found - expected| <= rounding(expected, dtype) + inexact

where the first part is the rounding of the stored value itself, and `inexact` is the error of its terms. Per op, the functions
below return `inexact` for the value and each gradient, as arrays: a small entry has a small bound, however large its neighbours.

Below 2^-14, fp16 holds only multiples of 2^-24, so there a rounding is at most LEAST, half of that. No test comes near 65504, above
which an fp16 is infinite.

The factors in front of the sizes are counts of roundings, or constants set by what was measured: the tests keep the worst error of
each op over all draws between 1/4 of its bound and the bound itself, so that no bound can be loosened.
"""

import math

import ml_dtypes
import numpy as np

from tensorlite import ReferenceOps

BF16, FP16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
UNIT = {FLOAT32: 2.0**-24, FP16: 2.0**-11, BF16: 2.0**-8}
LEAST = {FLOAT32: 0.0, FP16: 2.0**-25, BF16: 0.0}  # those of float32 and bf16 are below TINY
F = UNIT[FLOAT32]  # all arithmetic is in float32
TINY = 2.0**-120  # an error below this is allowed: floats below 2^-126 lose bits or become zero before they are multiplied
REFERENCE = ReferenceOps()


def close(found, expected, dtype, inexact=0.0):
    """Assert the bound in this file's docstring, the dtype and the shape. Return the worst error in units of the bound."""
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    error = np.abs(found.astype(np.float64) - expected)
    allowed = np.broadcast_to(rounding(expected, dtype) + inexact, error.shape)
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


def rounding(x, dtype):
    """Bound the error of rounding x to a dtype. None: x is not rounded."""
    return 0.0 if dtype is None else UNIT[np.dtype(dtype)] * np.abs(x) + LEAST[np.dtype(dtype)]


# ---- sums of terms ----


def added(*terms):
    """Bound the rounding error of a float32 sum of terms of given sizes, which are added one after the other, as in a matmul.

    With random signs, partial sums grow as the square root of the number of terms, and their roundings add up as random values do.
    So the error grows as the sum of the sizes: the worst of a million sums is 2 roundings of it for 5 terms, 5 for 130, 3 for 400.
    """
    return 6 * F * sum(terms)


def summed(x):
    """Bound the same for a sum over rows, whose parts (per lane, warp and block) are short."""
    return 3 * F * np.abs(flat(x)).sum(0)


def matmul_terms(a, b):
    """Return the sums of the sizes of a matmul's terms."""
    return np.abs(a) @ np.abs(b)


def through(errors, w):
    """Bound the error of a w, given the errors of a. At worst they all add up; for many independent errors five sigma are less."""
    return np.minimum(np.abs(errors) @ np.abs(w), 3.0 * np.sqrt(errors**2 @ w**2))


def usual(bound):
    """Return the typical error for a bound. Where errors add up in a later sum, the typical one counts, not the largest."""
    return bound / 3


def t(x):
    """Transpose the last two axes."""
    return np.swapaxes(x, -1, -2)


def flat(x):
    """Return the rows of x: (N, C)."""
    return x.reshape(-1, x.shape[-1])


# ---- ops: the errors of the value and of each gradient, in the op's order, before they are stored ----


def linear(x, w, b, dy, unfused=None):
    """Products of two 16-bit values are exact in float32 and those of float32 values round, so the sums dominate.

    unfused: the dtype of the GEMM's output, where it is stored, and so rounded, before a separate kernel adds the bias.
    """
    y = added(matmul_terms(x, w), 0 if b is None else np.abs(b)) + (0 if b is None else rounding(x @ w, unfused))
    return y, added(matmul_terms(dy, w.T)), *weights_of(x, dy, b)


def weights_of(x, dy, b, off=None):
    """Bound dw and db of a linear layer whose dy has the errors `off`."""
    x, dy = flat(x), flat(dy)
    off = np.zeros_like(dy) if off is None else flat(off)
    dw, db = t(through(t(off), x)) + added(matmul_terms(t(x), dy)), through(np.ones((1, len(x))), off)[0] + summed(dy)
    return dw, None if b is None else db


def embedding(ids, table, dy):
    """A lookup is exact; the gradient is a matmul with zeros and ones."""
    onehot = ids.reshape(-1, 1) == np.arange(len(table))
    return 0.0, added(matmul_terms(onehot.T, flat(dy)))


def position_embedding(x, wpe, start, dy):
    """The value is one sum, rounded when it is stored; dx is dy."""
    T, C = x.shape[-2:]
    dwpe = np.zeros_like(wpe)
    dwpe[start : start + T] = summed(dy.reshape(-1, T * C)).reshape(T, C)
    return 0.0, 0.0, dwpe


def dropout(x, dy, p=0.0, key=None):
    """The only error is the rounding of inv_keep."""
    y, cache = REFERENCE.dropout_forward(x, p, key)
    return F * np.abs(y), F * np.abs(REFERENCE.dropout_backward(dy, cache))


def residual(x, y, dy, p=0.0, key=None):
    """inv_keep and the multiplication by it round; dx is dy."""
    forward, backward = dropout(y, dy, p, key)
    return 2 * forward, 0.0, backward


def gelu(x, dy, one=2.0**-53):
    """exp(-2u) has the relative error of the roundings of 2u, and so has s = 1 / (1 + exp) where exp is not small beside 1.

    1 - s, a factor of the slope, is off by the rounding of s. The reference itself, which computes 1 + tanh and 1 - tanh^2, is off
    by the float64 rounding of the 1. one: that rounding, or float32's for a library that does the same in float32.
    """
    u, du = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    s = (1 + np.tanh(u)) / 2
    off = 4 * F * (1 + 2 * np.abs(u) * (1 - s))  # the relative error of s
    times = np.abs(x) * du  # the factor of a difference from 1
    dx = off * (s + 2 * s * (1 - s) * times) + 1.5 * F * s * 2 * times + one * (1 + times)
    return off * np.abs(x * s) + one * np.abs(x), np.abs(dy) * dx


def layernorm(x, w, b, dy, eps=1e-5, skip=None):
    """xhat has the roundings of the mean, of x - mean and of rstd; the means in dx are float32 sums."""
    mean, rstd = x.mean(-1, keepdims=True), 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    xhat, g = (x - mean) * rstd, dy * w
    off = F * (3 * np.abs(xhat) + 4 * rstd * np.abs(x).mean(-1, keepdims=True))  # of xhat
    mean_g, mean_gx = (np.abs(a).mean(-1, keepdims=True) for a in (g, g * xhat))
    dx = rstd * (3.5 * F * (np.abs(g) + mean_g + np.abs(xhat) * mean_gx) + off * np.abs((g * xhat).mean(-1, keepdims=True)))
    dw = through(np.ones((1, flat(x).shape[0])), flat(dy * off))[0] + summed(dy * xhat)
    y = np.abs(w) * off + F * (np.abs(xhat * w) + (0 if b is None else np.abs(b)))
    return y, dx + (0 if skip is None else F * np.abs(skip)), dw, summed(dy)


def attention(qkv, n_head, dy, y_dtype, rounds_p, p=0.0, key=None):
    """Bound y and dqkv. The scores' sums round; p has the error of its exponent, relatively. Tensor cores round p and ds.

    Forward rounds p before it is divided by the sum of its row, which is at least 1, so the bound for p itself holds.

    delta = dy . y is computed from the stored y. Its error is the same for all keys of a row.
    """
    B, T, C3 = qkv.shape
    C, D = C3 // 3, C3 // 3 // n_head
    q, k, v = qkv.reshape(B, T, 3, n_head, D).transpose(2, 0, 3, 1, 4)
    y, (_, _, probs, mask) = REFERENCE.attention_forward(qkv, n_head, p, key)
    y, dy = (a.reshape(B, T, n_head, D).transpose(0, 2, 1, 3) for a in (y, dy))
    scale, operand = 1 / math.sqrt(D), y_dtype if rounds_p else None

    def dropped(x):
        return x if mask is None else np.where(mask[0], mask[1], 0.0) * x

    p_dropped, off_operand = dropped(probs), dropped(rounding(probs, operand))
    exponent = np.abs(np.log(np.maximum(probs, 1e-99)))
    off = F * (2 * scale * matmul_terms(q, t(k)) + exponent + 1)  # the relative error of exp(score)
    off = off + (probs * off).sum(-1, keepdims=True)  # that of p, which is divided by the sum of its row
    out = through(off * p_dropped, v) + through(off_operand * np.ones_like(probs), v) + added(matmul_terms(p_dropped, v))

    dp = dropped(dy @ t(v))
    delta = (dy * y).sum(-1, keepdims=True)
    ds = probs * (dp - delta)
    off_delta = through(np.abs(dy) * rounding(y, y_dtype), np.ones((D, 1))) + added(np.abs(dy * y).sum(-1, keepdims=True))
    off_ds = off * np.abs(ds) + probs * added(matmul_terms(dy, t(v)), np.abs(delta)) + rounding(ds, operand)
    dq = scale * (through(off_ds, k) + off_delta * np.abs(probs @ k) + added(matmul_terms(ds, k)))
    dk = scale * (through(t(off_ds), q) + through(t(off_delta * probs), q) + added(matmul_terms(t(ds), q)))
    dv = through(t(off * p_dropped + off_operand), dy) + added(matmul_terms(t(p_dropped), dy))
    dqkv = np.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4).reshape(B, T, C3)
    return out.transpose(0, 2, 1, 3).reshape(B, T, C), dqkv


def cross_entropy(logits, targets, dloss, off=0.0):
    """The loss is a mean of float32 values of the size of lse; p has the rounding of its exponent, relatively.

    off: the errors of the logits.
    """
    z, N, p, lse = softmax(logits)
    off_p = p * (F * (np.abs(lse - z) + np.abs(lse) + 2) + off + (p * off).sum(-1, keepdims=True)) + F
    loss = 1.5 * F * (np.abs(lse) + np.abs(z).max(-1, keepdims=True)).mean()
    loss += 2 * np.sqrt(np.square(usual(off) * np.ones_like(z)).mean(-1).sum()) / N
    return loss, off_p.reshape(logits.shape) * np.abs(dloss) / N


def softmax(logits):
    """Return the rows of the logits, their number, their softmax and its lse."""
    z = flat(logits)
    max_logit = z.max(-1, keepdims=True)
    lse = max_logit + np.log(np.exp(z - max_logit).sum(-1, keepdims=True))
    return z, len(z), np.exp(z - lse), lse


# ---- composites that are one kernel or one GEMM: intermediate roundings carry over ----


def mlp(x, fc_w, fc_b, proj_w, proj_b, dy, dtype, unfused=None):
    """h is rounded when it is saved for backward; gelu(h) and dh are rounded as operands of the next GEMM."""
    h = x @ fc_w + (0 if fc_b is None else fc_b)
    a, slope = REFERENCE.gelu_forward(h)[0], REFERENCE.gelu_backward(np.ones_like(h), h)
    curve = (REFERENCE.gelu_backward(np.ones_like(h), h + 1e-4) - REFERENCE.gelu_backward(np.ones_like(h), h - 1e-4)) / 2e-4
    off_h = usual(added(matmul_terms(x, fc_w), 0 if fc_b is None else np.abs(fc_b))) + rounding(x @ fc_w, unfused)
    off_gelu, off_slope = map(usual, gelu(h, np.ones_like(h))) if unfused else gelu(h, np.ones_like(h), F)
    off_a = rounding(a, dtype) + np.abs(slope) * (off_h + rounding(h, unfused)) + off_gelu
    y = through(off_a, proj_w) + linear(a, proj_w, proj_b, dy, unfused)[0]
    da = dy @ proj_w.T
    off_da = usual(added(matmul_terms(dy, proj_w.T))) + rounding(da, unfused)
    off_slope = off_slope + np.abs(curve) * (rounding(h, dtype) + off_h)
    off_dh = rounding(da * slope, dtype) + off_da * np.abs(slope) + np.abs(da) * off_slope
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
    off_z = usual(off_z) + rounding(dz, dtype)
    return loss, through(off_z, w.T) + added(matmul_terms(dz, w.T)), *weights_of(x, dz, b, off_z)


# ---- whole steps ----


def as_rounded(function, params, dtype, draws=8):
    """Bound the errors of the arrays of function(params) by their change when all parameters are rounded once.

    A step rounds about as many values of about the same size, so it is as sensitive to these roundings. Measured errors are 0.2 to
    1 of the change for 16 bits, and 1 to 3 for float32, whose matmuls also round each term.

    Return function(params) and a bound per array.
    """
    unit, times, random = UNIT[np.dtype(dtype)], 4 if dtype == FLOAT32 else 1.5, np.random.default_rng(0)
    exact = function(params)
    bounds = [unit * np.abs(a).max() for a in exact]
    moved = [function(params * (1 + unit * random.uniform(-1, 1, params.shape))) for _ in range(draws)]
    return exact, [times * (own + max(np.abs(m[i] - exact[i]).max() for m in moved)) for i, own in enumerate(bounds)]
