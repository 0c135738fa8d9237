"""Mistakes people make in dropout and residual."""
# ruff: noqa: ARG001, an argument left unused can be the mistake

import numpy as np

from tensorlite.arrays import Array
from tensorlite.random import Key, keep_mask
from tensorlite.reference.dropout import dropout_backward, dropout_forward
from tensorlite.testing.bugs.bug import bug


@bug(
    "dropout",
    "the inv_keep forgotten",
    "dx",
    how_it_happens="The mask was remembered, but the factor inv_keep of inverted dropout was not.",
    explanation="y = x mask inv_keep has slope inv_keep where the mask is 1; without it gradients are too small by that factor.",
)
def _(dy: Array, cache: tuple) -> Array:
    mask, _ = cache
    return np.where(mask, dy, 0.0)


@bug(
    "dropout",
    "divided by p",
    "dx",
    how_it_happens="Some libraries' p is the probability of keeping.",
    explanation="Here p is the probability of dropping, and kept entries are divided by 1 - p. At p = 0.5 the two agree.",
)
def _(dy: Array, cache: tuple) -> Array:
    mask, inv_keep = cache
    p = 1.0 - 1.0 / inv_keep
    return np.where(mask, dy / p, 0.0)


@bug(
    "dropout",
    "another mask",
    "dx",
    how_it_happens="To save the memory of the mask, backward draws it again, but by then the generator has moved on.",
    explanation="Backward must block what forward blocked. Redrawing is fine when, and only when, it starts from the same key.",
)
def _(dy: Array, cache: tuple) -> Array:
    mask, inv_keep = cache
    redrawn = keep_mask(np, Key(1, 3), mask.shape, 1.0 - 1.0 / inv_keep)
    return np.where(redrawn, dy * inv_keep, 0.0)


@bug(
    "dropout",
    "the mask not applied",
    "dx",
    how_it_happens="Dropout was thought of as noise in the forward only, to be averaged away.",
    explanation="A dropped entry had no influence on the loss, so its gradient is exactly 0.",
)
def _(dy: Array, cache: tuple) -> Array:
    _, inv_keep = cache
    return dy * inv_keep


@bug(
    "dropout",
    "dy passed on as it is",
    "dx",
    how_it_happens="dy was computed from the dropped values, so the mask was thought to be in it already.",
    explanation="The layers above saw the dropped values, and dy is the gradient of those. The step from y to x is still to come.",
)
def _(dy: Array, cache: tuple) -> Array:
    return dy


def _dropout_unscaled(x: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple | None]:
    if key is None or p == 0.0:
        return x, None
    mask = keep_mask(np, key, x.shape, p)
    return np.where(mask, x, 0.0), (mask, 1.0)


@bug(
    "dropout",
    "the original form, half of it",
    "y",
    how_it_happens="The paper scales the weights at test time instead, and that half was left out.",
    explanation="Training then sees values smaller by a factor of 1 - p than evaluation. Finite differences only see training.",
    forward=_dropout_unscaled,
    caught_by="test_dropout_keeps_values_scaled_exactly",
)
def _(dy: Array, cache: tuple | None) -> Array:
    return dropout_backward(dy, cache)


@bug(
    "residual",
    "dropout skipped on the branch",
    "dy",
    how_it_happens="A sum passes its gradient to both terms unchanged, so the same dout was returned twice.",
    explanation="x + dropout(y): the second term went through dropout first, so its gradient goes back through it.",
)
def _(dout: Array, cache: tuple) -> tuple:
    return dout, dout


@bug(
    "residual",
    "the gradient shared out",
    "dx dy",
    how_it_happens="Two terms, one gradient: half for each.",
    explanation="Both terms have slope 1, so each gets all of it. Halving at every block starves the early layers.",
)
def _(dout: Array, cache: tuple) -> tuple:
    return 0.5 * dout, 0.5 * dropout_backward(dout, cache)


@bug(
    "residual",
    "dropout on the skip path too",
    "dx",
    how_it_happens="dout was sent through dropout first, and the result used for both terms.",
    explanation="Only y was dropped. The skip path carries dout untouched, which is why deep residual networks learn.",
)
def _(dout: Array, cache: tuple) -> tuple:
    dropped = dropout_backward(dout, cache)
    return dropped, dropped


def _residual_dropped_sum(x: Array, y: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple | None]:
    return dropout_forward(x + y, p, key)


@bug(
    "residual",
    "dropout after the sum",
    "y",
    how_it_happens="One closing bracket moved.",
    explanation="The residual stream itself is dropped, block after block. Forward and backward agree, so only the value shows it.",
    forward=_residual_dropped_sum,
    caught_by="test_value_against_loops",
)
def _(dout: Array, cache: tuple | None) -> tuple:
    dropped = dropout_backward(dout, cache)
    return dropped, dropped
