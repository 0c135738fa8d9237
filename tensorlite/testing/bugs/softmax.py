"""Mistakes people make in softmax."""

import numpy as np

from tensorlite.arrays import Array
from tensorlite.reference.softmax import softmax_backward
from tensorlite.testing.bugs.bug import bug


@bug(
    "softmax",
    "the diagonal only",
    "dx",
    how_it_happens="The sigmoid's derivative is y (1 - y), and softmax is the sigmoid of many classes.",
    explanation="Raising x_i also pushes every other y_j down through the shared sum: dy_j/dx_i = -y_i y_j is lost.",
)
def _(dy: Array, cache: Array) -> Array:
    y = cache
    return dy * y * (1.0 - y)


@bug(
    "softmax",
    "the sum forgotten",
    "dx",
    how_it_happens="The derivative of exp is exp, and the denominator was taken for a constant.",
    explanation="The denominator depends on every x_i: it takes y_i sum(dy y) away. Rows of dx must sum to 0.",
)
def _(dy: Array, cache: Array) -> Array:
    y = cache
    return dy * y


@bug(
    "softmax",
    "the sum over the wrong axis",
    "dx",
    how_it_happens="The axis was 1 when the scores had two axes, and stayed 1 when they had three.",
    explanation="The shared denominator runs along the last axis. keepdims lets any axis broadcast, so nothing complains.",
)
def _(dy: Array, cache: Array) -> Array:
    y = cache
    return y * (dy - (dy * y).sum(axis=1, keepdims=True))


@bug(
    "softmax",
    "a plain sum of dy",
    "dx",
    how_it_happens="The rows of dx should sum to 0, so the sum of dy was subtracted, unweighted.",
    explanation="The average of dy under y must be subtracted, sum(dy y). Then a row of dx sums to sum(y dy) - sum(dy y) = 0.",
)
def _(dy: Array, cache: Array) -> Array:
    y = cache
    return y * (dy - dy.sum(axis=-1, keepdims=True))


@bug(
    "softmax",
    "a gradient for the maximum",
    "dx",
    how_it_happens="Forward subtracts the largest entry, so it was differentiated too, in the numerator alone.",
    explanation="y ignores a shift of its row: the paths of the maximum through numerator and denominator cancel exactly.",
)
def _(dy: Array, cache: Array) -> Array:
    y = cache
    average = (dy * y).sum(axis=-1, keepdims=True)
    is_max = y == y.max(axis=-1, keepdims=True)
    return y * (dy - average) - is_max * average


def _softmax_unshifted(x: Array) -> tuple[Array, Array]:
    e = np.exp(x)
    y = e / e.sum(axis=-1, keepdims=True)
    return y, y


@bug(
    "softmax",
    "the maximum not subtracted",
    "y",
    how_it_happens="The formula has no maximum in it.",
    explanation="exp(1000) is infinite and inf/inf is NaN; subtracting the largest entry changes nothing else.",
    forward=_softmax_unshifted,
    caught_by="test_softmax_rows_sum_to_one_and_ignore_a_shift",
)
def _(dy: Array, cache: Array) -> Array:
    return softmax_backward(dy, cache)
