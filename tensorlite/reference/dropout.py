"""Dropout, with a mask that is a function of a key, and the residual connection that uses it."""

from typing import Any

from tensorlite.arrays import Array, array_namespace
from tensorlite.random import Key, drop_threshold, keep_mask


def draw_mask(xp: Any, shape: tuple[int, ...], p: float, key: Key | None) -> tuple | None:
    """Return (mask, inv_keep), with p rounded to a multiple of 1/65536; None where nothing is dropped: no key, or p rounds to 0."""
    threshold = drop_threshold(p)
    if key is None or threshold == 0:
        return None
    return keep_mask(xp, key, shape, p), 65536 / (65536 - threshold)


def dropout_forward(x: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple | None]:
    """y = x mask inv_keep,  with mask drawn from the key and inv_keep = 1 / keep_prob, keep_prob the probability of a 1 in it.

    x: (B, ...) float.
    p: probability of dropping, in [0, 1). It is rounded to a multiple of 1/65536, and keep_prob is 1 minus the rounded p, so the
    expectation of y is exactly x.
    key: None (evaluation) or p = 0 returns x itself.
    Returns y: the shape of x, and a cache of the mask, one byte per element (drawing it again costs more than reading it).
    Raises ValueError when p is outside [0, 1). Tests: tests/reference/test_ops.py[dropout].
    Source: Srivastava et al. 2014, JMLR 15, in the "inverted" form.
    """
    xp = array_namespace(x)
    cache = draw_mask(xp, x.shape, p, key)
    if cache is None:
        return x, None
    mask, inv_keep = cache
    return xp.where(mask, x * inv_keep, 0.0), cache


def dropout_backward(dy: Array, cache: tuple | None) -> Array:
    """dx = dy mask inv_keep

    dy and dx: the shape of x.

    Derivation: 1. the mask does not depend on x, so y is linear in x, element by element, with slope mask inv_keep.
    """
    if cache is None:
        return dy
    mask, inv_keep = cache
    xp = array_namespace(dy, mask)
    return xp.where(mask, dy * inv_keep, 0.0)  # 1.


def check_residual(x: Array, y: Array) -> None:
    """Raise ValueError unless x and y are of one shape."""
    if x.shape != y.shape:
        raise ValueError(f"residual: x {x.shape} and y {y.shape} differ in shape")


def residual_forward(x: Array, y: Array, p: float = 0.0, key: Key | None = None) -> tuple[Array, tuple | None]:
    """out = x + dropout(y): the residual connection.

    x, y: (B, ...) of one shape.
    p, key: as for dropout.
    Returns out: the shape of x, and dropout's cache. Raises ValueError when the shapes differ.
    Tests: tests/reference/test_ops.py[residual].
    """
    array_namespace(x, y)
    check_residual(x, y)
    branch, cache = dropout_forward(y, p, key)
    return x + branch, cache


def residual_backward(dout: Array, cache: tuple | None) -> tuple[Array, Array]:
    """dx = dout,  dy = dropout_backward(dout)

    dout: the shape of x. Returns dx, the same array as dout, and dy.

    Derivation: 1. A sum passes its gradient to both terms unchanged. This is why a deep residual network still learns.
                2. The second term went through dropout first.
    """
    return dout, dropout_backward(dout, cache)  # 1., 2.
