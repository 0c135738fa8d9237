"""Mistakes people make in linear."""

from tensorlite.arrays import Array
from tensorlite.testing.bugs.bug import bug


@bug(
    "linear",
    "dx without the transpose",
    "dx",
    how_it_happens="The weight of an attention projection is square, so dy @ w has the right shape and nothing complains.",
    explanation="x_c reaches y_d through w_cd, so dx_c sums w_cd dy_d over d: dx = dy w^T. Without the transpose it sums over c.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _ = cache
    C, D = w.shape
    dy = dy.reshape(-1, D)
    dx = (dy @ w).reshape(x.shape)
    dw = x.reshape(-1, C).T @ dy
    db = dy.sum(axis=0)
    return dx, dw, db


@bug(
    "linear",
    "dw transposed",
    "dw",
    how_it_happens="The formula was copied from a library whose weights are (out, in).",
    explanation="Here w is (in, out), so dw = x^T dy is (in, out) too; dy^T x is its transpose, which fits only a square weight.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _ = cache
    C, D = w.shape
    dy = dy.reshape(-1, D)
    dx = (dy @ w.T).reshape(x.shape)
    dw = dy.T @ x.reshape(-1, C)
    db = dy.sum(axis=0)
    return dx, dw, db


@bug(
    "linear",
    "db averaged over rows",
    "db",
    how_it_happens="The loss is a mean over the batch, so the gradient of the bias is taken to be one too.",
    explanation="b is added to every row, so db is the sum of dy. The 1/N of the loss is in dy already; here it counts twice.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _ = cache
    C, D = w.shape
    dy = dy.reshape(-1, D)
    dx = (dy @ w.T).reshape(x.shape)
    dw = x.reshape(-1, C).T @ dy
    db = dy.mean(axis=0)
    return dx, dw, db


@bug(
    "linear",
    "dw divided by the number of rows",
    "dw",
    how_it_happens="Textbooks write the gradient of linear regression as x^T (y - target) / N, and the N came along.",
    explanation="That N belongs to the loss, whose backward has divided by it before dy arrived. Adam would hide the factor.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _ = cache
    C, D = w.shape
    x_rows, dy = x.reshape(-1, C), dy.reshape(-1, D)
    dx = (dy @ w.T).reshape(x.shape)
    dw = x_rows.T @ dy / len(x_rows)
    db = dy.sum(axis=0)
    return dx, dw, db


@bug(
    "linear",
    "db summed over the first axis only",
    "db",
    how_it_happens="The layer was written for x of shape (N, C) and later fed (B, T, C).",
    explanation="b serves every row of every sequence, so db sums over all axes but the last; this one still has a T axis.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _ = cache
    C, D = w.shape
    dx = dy @ w.T
    dw = x.reshape(-1, C).T @ dy.reshape(-1, D)
    db = dy.sum(axis=0)
    return dx, dw, db


@bug(
    "linear",
    "db left as dy",
    "db",
    how_it_happens="dy/db is 1, so the chain rule was taken to say db = dy.",
    explanation="It is 1 in every row, and each row counts: db sums dy over the rows, the axes along which b was broadcast.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _ = cache
    C, D = w.shape
    dx = dy @ w.T
    dw = x.reshape(-1, C).T @ dy.reshape(-1, D)
    db = dy
    return dx, dw, db


@bug(
    "linear",
    "db with one axis too many",
    "db",
    how_it_happens="keepdims=True was copied from a layernorm, and a comparison with the true db said that they are equal.",
    explanation="db: (1, D) is no gradient of b: (D,). The comparison broadcast the two, so compare the shapes before the values.",
)
def _(dy: Array, cache: tuple) -> tuple:
    x, w, _ = cache
    C, D = w.shape
    dy = dy.reshape(-1, D)
    dx = (dy @ w.T).reshape(x.shape)
    dw = x.reshape(-1, C).T @ dy
    db = dy.sum(axis=0, keepdims=True)
    return dx, dw, db
