"""Linear layer: y = x w + b.

The convention of every op: the loss is one number, and dx is d loss / d x. It has x's shape and says, entry by entry, how fast the
loss rises with that entry. A backward receives dy, the gradient of its output, and returns the gradients of its inputs.
"""

from tensorlite.arrays import Array, array_namespace


def check_linear(x: Array, w: Array, b: Array | None) -> None:
    """Raise ValueError unless x: (..., C), w: (C, D) and b: (D,) or None."""
    if x.shape[-1] != w.shape[0]:
        raise ValueError(f"linear: x has {x.shape[-1]} channels, w {w.shape} takes {w.shape[0]}")
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear: b {b.shape} does not fit w {w.shape}")


def linear_forward(x: Array, w: Array, b: Array | None = None) -> tuple[Array, tuple]:
    """y = x w + b, over the last axis of x.

    x: (..., C) float.
    w: (C, D), the transpose of what a PyTorch `nn.Linear` holds.
    b: (D,) or None.
    Returns y: (..., D), and a cache of references to x and w (no bytes of its own).
    Raises ValueError when the shapes do not fit. Cost: 2 N C D FLOPs for N rows. Tests: tests/reference/test_ops.py[linear].
    """
    array_namespace(x, w, b)
    check_linear(x, w, b)
    C, D = w.shape
    has_bias = b is not None
    y = x.reshape(-1, C) @ w  # (N, C) @ (C, D) -> (N, D)
    if has_bias:
        y = y + b  # (N, D) + (D,)
    return y.reshape(*x.shape[:-1], D), (x, w, has_bias)


def linear_backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = dy w^T,  dw = x^T dy,  db = sum of dy over rows.

    dy: (..., D). Returns dx: (..., C), dw: (C, D), db: (D,) or None.

    Derivation, for y_nd = sum_c x_nc w_cd + b_d:
      1. x_nc reaches every y_nd through w_cd:        dx_nc = sum_d dy_nd w_cd.
      2. w_cd reaches y_nd for every row n, via x_nc: dw_cd = sum_n x_nc dy_nd.
      3. b_d is added to y_nd for every row n:        db_d  = sum_n dy_nd.
    Cost: 4 N C D FLOPs.
    """
    x, w, has_bias = cache
    array_namespace(dy, x)
    C, D = w.shape
    dy = dy.reshape(-1, D)  # (N, D)
    dx = (dy @ w.T).reshape(x.shape)  # 1. (N, D) @ (D, C) -> (N, C)
    dw = x.reshape(-1, C).T @ dy  # 2. (C, N) @ (N, D) -> (C, D)
    db = dy.sum(axis=0) if has_bias else None  # 3. (N, D) -> (D,)
    return dx, dw, db
