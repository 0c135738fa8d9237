"""Layer normalisation (Ba, Kiros, Hinton 2016, arXiv:1607.06450)."""

from tensorlite.arrays import Array, array_namespace


def check_layernorm(x: Array, w: Array, b: Array | None) -> None:
    """Raise ValueError unless x: (..., C), w: (C,) and b: (C,) or None."""
    C = x.shape[-1:]
    if w.shape != C or (b is not None and b.shape != C):
        b_shape = None if b is None else b.shape
        raise ValueError(f"layernorm: x {x.shape} needs w and b of shape {C}, got {w.shape} and {b_shape}")


def layernorm_forward(x: Array, w: Array, b: Array | None = None, eps: float = 1e-5) -> tuple[Array, tuple]:
    """y = xhat w + b,  xhat = (x - mean) rstd,  rstd = 1 / sqrt(var + eps), over the last axis.

    x: (..., C) float.
    w: (C,), the gain.
    b: (C,) or None.
    eps: added to the variance, in x's units squared.
    var is the biased variance: the sum of squares is divided by C, not by C - 1.
    Returns y: (..., C), and a cache of references to x and w plus mean and rstd, two values per row. Recomputing xhat is cheaper
    than saving it.
    Raises ValueError when w or b is not of shape (C,). Tests: tests/reference/test_ops.py[layernorm].
    """
    xp = array_namespace(x, w, b)
    check_layernorm(x, w, b)
    mean = x.mean(axis=-1, keepdims=True)  # (..., 1)
    centered = x - mean  # (..., C)
    var = (centered * centered).mean(axis=-1, keepdims=True)  # (..., 1)
    rstd = 1.0 / xp.sqrt(var + eps)  # (..., 1)
    y = centered * rstd * w  # (..., C)
    has_bias = b is not None
    if has_bias:
        y = y + b
    return y, (x, w, has_bias, mean, rstd)


def layernorm_backward(dy: Array, cache: tuple) -> tuple[Array, Array, Array | None]:
    """dx = rstd (g - mean(g) - xhat mean(g xhat))  with  g = dy w;   dw = sum of dy xhat;   db = sum of dy.

    dy: (..., C).
    Returns dx: (..., C), dw: (C,), db: (C,) or None.

    Derivation, for one row of C entries, y_i = xhat_i w_i + b_i:
      1. w_i and b_i serve every row:      dw_i = sum_rows dy_i xhat_i,   db_i = sum_rows dy_i.
      2. Into the normalised value:        g_i = dxhat_i = dy_i w_i.
      3. xhat_j = (x_j - mean) rstd depends on x_i in three ways:
           directly:                       d(x_j)/dx_i    = [i = j]
           through the mean:               d(mean)/dx_i   = 1/C
           through rstd:                   d(rstd)/dx_i   = -rstd^3 (x_i - mean)/C = -rstd^2 xhat_i / C
         so                                dxhat_j/dx_i   = rstd ([i = j] - 1/C - xhat_i xhat_j / C).
      4. Summed against g_j:               dx_i = rstd (g_i - mean(g) - xhat_i mean(g xhat)).
    Layernorm ignores shifts and scales of x, so dx is orthogonal to the constant vector and, up to eps, to xhat.
    """
    x, w, has_bias, mean, rstd = cache
    array_namespace(dy, x)
    C = x.shape[-1]
    xhat = (x - mean) * rstd  # (..., C), as in forward
    dw = (dy * xhat).reshape(-1, C).sum(axis=0)  # 1. (N, C) -> (C,)
    db = None
    if has_bias:
        db = dy.reshape(-1, C).sum(axis=0)  # 1. (N, C) -> (C,)
    g = dy * w  # 2. (..., C)
    g_mean = g.mean(axis=-1, keepdims=True)  # 3. through the mean, (..., 1)
    g_xhat_mean = (g * xhat).mean(axis=-1, keepdims=True)  # 3. through rstd, (..., 1)
    dx = rstd * (g - g_mean - xhat * g_xhat_mean)  # 4. (..., C)
    return dx, dw, db
