"""Mistakes people make in layernorm."""

import numpy as np

from tensorlite.arrays import Array
from tensorlite.reference.layernorm import layernorm_backward
from tensorlite.testing.bugs.bug import bug


@bug(
    "layernorm",
    "the path through the mean forgotten",
    "dx",
    how_it_happens="The mean is treated as a constant, like a statistic that comes from elsewhere.",
    explanation="Every x_i moves the mean by 1/C and so every xhat_j: this path takes mean(g) away. Rows of dx must sum to 0.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _, mean, rstd = cache
    xhat = (x - mean) * rstd
    dw = (dy * xhat).sum(axis=(0, 1))
    db = dy.sum(axis=(0, 1))
    g = dy * w
    dx = rstd * (g - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx, dw, db


@bug(
    "layernorm",
    "the path through the variance forgotten",
    "dx",
    how_it_happens="The variance is treated as a constant; what is left looks like a centring, and training still works.",
    explanation="Every x_i moves rstd and so the scale of the whole row: this path takes xhat mean(g xhat) away.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _, mean, rstd = cache
    xhat = (x - mean) * rstd
    dw = (dy * xhat).sum(axis=(0, 1))
    db = dy.sum(axis=(0, 1))
    g = dy * w
    dx = rstd * (g - g.mean(axis=-1, keepdims=True))
    return dx, dw, db


@bug(
    "layernorm",
    "n - 1 for n",
    "dx",
    how_it_happens="Bessel's correction was copied from a derivation of batch normalisation with an unbiased variance.",
    explanation="The forward divides the sum of squares by C, so the path through rstd has 1/C, not 1/(C - 1).",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _, mean, rstd = cache
    C = x.shape[-1]
    xhat = (x - mean) * rstd
    dw = (dy * xhat).sum(axis=(0, 1))
    db = dy.sum(axis=(0, 1))
    g = dy * w
    dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).sum(axis=-1, keepdims=True) / (C - 1))
    return dx, dw, db


@bug(
    "layernorm",
    "the gain left out of dx",
    "dx",
    how_it_happens="The formula was tested with the gain as it is initialised: all ones.",
    explanation="xhat reaches y through w, so the gradient into xhat is g = dy w. With w = 1 the two are equal.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, _, _, mean, rstd = cache
    xhat = (x - mean) * rstd
    dw = (dy * xhat).sum(axis=(0, 1))
    db = dy.sum(axis=(0, 1))
    dx = rstd * (dy - dy.mean(axis=-1, keepdims=True) - xhat * (dy * xhat).mean(axis=-1, keepdims=True))
    return dx, dw, db


@bug(
    "layernorm",
    "rstd squared",
    "dx",
    how_it_happens="d(rstd)/dx has an rstd^3 in it, and one power too many survived the simplification.",
    explanation="xhat is x - mean times one rstd, and the other two powers are inside the correction, which is written with xhat.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _, mean, rstd = cache
    xhat = (x - mean) * rstd
    dw = (dy * xhat).sum(axis=(0, 1))
    db = dy.sum(axis=(0, 1))
    g = dy * w
    dx = rstd * rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx, dw, db


@bug(
    "layernorm",
    "dw from the raw input",
    "dw",
    how_it_happens="In a linear layer dw is the input times dy, and x is what the cache holds.",
    explanation="The gain multiplies the normalised value: dw = sum of dy xhat. x has a mean and a scale that y never saw.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _, mean, rstd = cache
    xhat = (x - mean) * rstd
    dw = (dy * x).sum(axis=(0, 1))
    db = dy.sum(axis=(0, 1))
    g = dy * w
    dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx, dw, db


@bug(
    "layernorm",
    "db after the gain",
    "db",
    how_it_happens="g = dy w was computed first and then used for everything.",
    explanation="b is added after the gain, so w is not on its way: db is the sum of dy, not of g.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _, mean, rstd = cache
    xhat = (x - mean) * rstd
    g = dy * w
    dw = (dy * xhat).sum(axis=(0, 1))
    db = g.sum(axis=(0, 1))
    dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx, dw, db


@bug(
    "layernorm",
    "means over the batch",
    "dx",
    how_it_happens="Batch normalisation has the same formula, with its means over axis 0; keepdims makes either axis broadcast.",
    explanation="Layernorm normalises each row on its own, so the means of its backward run over the channels; here rows mix.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _, mean, rstd = cache
    xhat = (x - mean) * rstd
    dw = (dy * xhat).sum(axis=(0, 1))
    db = dy.sum(axis=(0, 1))
    g = dy * w
    dx = rstd * (g - g.mean(axis=0, keepdims=True) - xhat * (g * xhat).mean(axis=0, keepdims=True))
    return dx, dw, db


@bug(
    "layernorm",
    "rows counted by the first axis",
    "dx dw db",
    how_it_happens="The layer was written for x of shape (N, C), where the first axis is the number of rows.",
    explanation="(B, T, C) has B T rows. Only the first B of them are read and written here, and dx is 0 in all others.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _, mean, rstd = cache
    N, C = x.shape[0], x.shape[-1]
    xhat = ((x - mean) * rstd).reshape(-1, C)[:N]
    rstd = rstd.reshape(-1, 1)[:N]
    dy = dy.reshape(-1, C)[:N]
    dw = (dy * xhat).sum(axis=0)
    db = dy.sum(axis=0)
    g = dy * w
    dx = np.zeros((x.size // C, C))
    dx[:N] = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx.reshape(x.shape), dw, db


def _layernorm_unbiased(x: Array, w: Array, b: Array | None = None, eps: float = 1e-5) -> tuple[Array, tuple]:
    mean = x.mean(axis=-1, keepdims=True)
    centered = x - mean
    var = (centered * centered).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)
    rstd = 1.0 / np.sqrt(var + eps)
    y = centered * rstd * w
    return y if b is None else y + b, (x, w, b is not None, mean, rstd)


@bug(
    "layernorm",
    "the unbiased variance",
    "y",
    how_it_happens="Statistics books, and the default of some libraries' var, divide by n - 1.",
    explanation="Layernorm is defined with the biased variance. Forward and backward agree, so only a reference value shows it.",
    forward=_layernorm_unbiased,
    caught_by="test_value_against_loops",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, has_bias, mean, rstd = cache
    C = x.shape[-1]
    xhat = (x - mean) * rstd
    dw = (dy * xhat).reshape(-1, C).sum(axis=0)
    db = dy.reshape(-1, C).sum(axis=0) if has_bias else None
    g = dy * w
    dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).sum(axis=-1, keepdims=True) / (C - 1))
    return dx, dw, db


def _layernorm_one_pass(x: Array, w: Array, b: Array | None = None, eps: float = 1e-5) -> tuple[Array, tuple]:
    mean = x.mean(axis=-1, keepdims=True)
    var = np.maximum((x * x).mean(axis=-1, keepdims=True) - mean * mean, 0.0)
    rstd = 1.0 / np.sqrt(var + eps)
    y = (x - mean) * rstd * w
    return y if b is None else y + b, (x, w, b is not None, mean, rstd)


@bug(
    "layernorm",
    "the variance in one pass",
    "y",
    how_it_happens="E[x^2] - E[x]^2 reads x once instead of twice.",
    explanation="The formula is right and the arithmetic is not: with a mean of 1e6 the two terms agree to 12 digits and cancel.",
    forward=_layernorm_one_pass,
    caught_by="test_layernorm_survives_a_large_mean",
)
def _(dy: Array, cache: tuple) -> tuple:
    return layernorm_backward(dy, cache)
