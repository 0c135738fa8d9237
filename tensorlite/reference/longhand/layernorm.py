"""Layer normalisation in the long form: x reaches y directly, through the mean and through rstd."""

from tensorlite.arrays import Array, array_namespace


def longhand_layernorm(x: Array, w: Array, b: Array, eps: float, dy: Array) -> tuple[Array, Array, Array, Array]:
    """y = (x - mean) / sqrt(var + eps) w + b, for each row.

    x: (N, C).
    w: (C,).
    b: (C,).
    eps: added to the variance.
    dy: (N, C).
    Returns y: (N, C), dx: (N, C), dw: (C,), db: (C,).

    The fused form: lines 12 and 11 of backward are steps 1 and 2 of layernorm_backward, where dxhat is called g. Lines 10 to 1 are
    its step 3, one path after the other, each with a factor rstd:
      directly           lines 10 and 3:    g rstd
      through rstd       lines 10 to 4:     -rstd xhat mean(g xhat), since drstd = sum(g centered) and centered rstd = xhat
      through the mean   lines 3 to 1:      -rstd mean(g), since xhat has the mean 0 and drops out of the sum in line 3
    Their sum is step 4.
    """
    xp = array_namespace(x, w, b, dy)
    C = x.shape[-1]
    row_sum = x.sum(axis=-1, keepdims=True)  # 1. (N, 1)
    mean = row_sum / C  # 2. (N, 1)
    centered = x - mean  # 3. (N, C)
    squares = centered**2  # 4. (N, C)
    square_sum = squares.sum(axis=-1, keepdims=True)  # 5. (N, 1)
    var = square_sum / C  # 6. (N, 1)
    var_eps = var + eps  # 7. (N, 1)
    std = xp.sqrt(var_eps)  # 8. (N, 1)
    rstd = 1.0 / std  # 9. (N, 1)
    xhat = centered * rstd  # 10. (N, C)
    scaled = xhat * w  # 11. (N, C)
    y = scaled + b  # 12. (N, C)

    dscaled = dy  # 12. (N, C), add
    db = dy.sum(axis=0)  # 12. (C,), add; b was broadcast over the rows
    dxhat = dscaled * w  # 11. (N, C), product
    dw = (dscaled * xhat).sum(axis=0)  # 11. (C,), product; w was broadcast over the rows
    dcentered = dxhat * rstd  # 10. (N, C), product
    drstd = (dxhat * centered).sum(axis=-1, keepdims=True)  # 10. (N, 1), product; rstd was broadcast over the row
    dstd = -drstd / std**2  # 9. (N, 1), function: (1/u)' = -1/u^2
    dvar_eps = dstd * 0.5 / std  # 8. (N, 1), function: sqrt' u = 1 / (2 sqrt(u))
    dvar = dvar_eps  # 7. (N, 1), constant
    dsquare_sum = dvar / C  # 6. (N, 1), constant
    dsquares = xp.broadcast_to(dsquare_sum, squares.shape)  # 5. (N, C), sum
    dcentered = dcentered + dsquares * 2.0 * centered  # 4. (N, C), function: (u^2)' = 2u; centered is used in lines 4 and 10: reuse
    dx = dcentered  # 3. (N, C), add
    dmean = -dcentered.sum(axis=-1, keepdims=True)  # 3. (N, 1), add; mean was broadcast over the row
    drow_sum = dmean / C  # 2. (N, 1), constant
    dx = dx + drow_sum  # 1. (N, C), sum; x is used in lines 1 and 3: reuse
    return y, dx, dw, db
