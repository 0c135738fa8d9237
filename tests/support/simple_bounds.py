"""Bounds for kernels/simple, where one thread adds a whole row or column, term by term.

The bounds of the fused kernels (cuda_bounds.py) count on short sums: a lane adds a 32nd of a row, and then 32 lanes add their sums.
Attention keeps those bounds, because its sums over D are as long in both.
"""

import numpy as np

import cuda_bounds as bounds
from cuda_bounds import F, softmax, through


def serial(terms):
    """Bound the rounding error of float32 sums over the last axis. Each term is rounded, and so is the sum so far."""
    sums = np.cumsum(terms, axis=-1)
    return through(F * (np.abs(sums) + np.abs(terms)), np.ones((terms.shape[-1], 1)))


def layernorm(x, w, b, dy, eps=1e-5):
    """The mean, the variance and the means of g and g xhat are sums over a row. One error of them counts for the whole row."""
    C = x.shape[-1]
    centered = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    xhat = centered * rstd
    off_mean = serial(x / C)
    off_rstd = rstd**2 / 2 * serial(centered**2 / C) + 2 * F  # relatively, with the roundings of the root and of 1 / root
    off_xhat = rstd * off_mean + np.abs(xhat) * (off_rstd + 2 * F)  # with those of x - mean and of its multiplication by rstd
    y = np.abs(w) * off_xhat + F * np.abs(w * xhat)

    g = dy * w
    g_mean = g.mean(-1, keepdims=True)
    g_xhat_mean = (g * xhat).mean(-1, keepdims=True)
    off_g_xhat_mean = serial(g * xhat / C) + off_rstd * np.abs(g_xhat_mean) + rstd * off_mean * np.abs(g_mean)
    off_inner = F * (np.abs(g) + np.abs(g - g_mean) + np.abs(xhat * g_xhat_mean)) + serial(g / C)
    off_inner = off_inner + np.abs(xhat) * off_g_xhat_mean + off_xhat * np.abs(g_xhat_mean)
    dx = rstd * (off_inner + (off_rstd + F) * np.abs(g - g_mean - xhat * g_xhat_mean))

    dw = serial((dy * xhat).T)[:, 0] + through(np.ones((1, len(x))), dy * off_xhat)[0]
    return y, dx, dw, serial(dy.T)[:, 0]


def cross_entropy(logits, targets, dloss):
    """An error of the sum of exp, relatively, is an error of lse, and so of the row's loss and, relatively, of its p."""
    z, N, p, lse = softmax(logits)
    max_logit = z.max(-1, keepdims=True)
    losses = lse - np.take_along_axis(z, targets.reshape(-1, 1), -1)
    off_lse = serial(p) + through(F * p * np.abs(z - max_logit), np.ones((z.shape[-1], 1)))  # relative to a sum of 1
    off_losses = off_lse + F * (np.abs(lse - max_logit) + np.abs(lse) + np.abs(losses))  # the roundings of log and of two sums
    loss = (through(np.ones((1, N)), off_losses) + serial(losses.T))[0, 0] / N
    _, dlogits = bounds.cross_entropy(logits, targets, dloss)
    return loss, dlogits + (p * off_lse).reshape(logits.shape) * np.abs(dloss) / N
