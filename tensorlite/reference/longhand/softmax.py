"""Softmax in the long form: every entry reaches every output through the shared sum."""

from tensorlite.arrays import Array, array_namespace


def longhand_softmax(x: Array, dy: Array) -> tuple[Array, Array]:
    """y_i = exp(x_i) / sum_j exp(x_j), for each row.

    x: (N, K).
    dy: (N, K).
    Returns y: (N, K), dx: (N, K).

    The fused form: lines 6 to 3 of backward, put into each other, give dshifted = y (dy - sum(dy y)), which is step 2 of
    softmax_backward. The first term comes from exps directly, the second through exp_sum. Lines 2 and 1 then add nothing: each row
    of dshifted sums to 0, because softmax ignores a shift, so dx_max is 0 up to rounding. For the same reason two equal maxima do
    no harm in line 1.
    """
    xp = array_namespace(x, dy)
    x_max = x.max(axis=-1, keepdims=True)  # 1. (N, 1)
    shifted = x - x_max  # 2. (N, K)
    exps = xp.exp(shifted)  # 3. (N, K)
    exp_sum = exps.sum(axis=-1, keepdims=True)  # 4. (N, 1)
    inv_exp_sum = 1.0 / exp_sum  # 5. (N, 1)
    y = exps * inv_exp_sum  # 6. (N, K)

    dexps = dy * inv_exp_sum  # 6. (N, K), product
    dinv_exp_sum = (dy * exps).sum(axis=-1, keepdims=True)  # 6. (N, 1), product; inv_exp_sum was broadcast over the row
    dexp_sum = -dinv_exp_sum / exp_sum**2  # 5. (N, 1), function: (1/u)' = -1/u^2
    dexps = dexps + dexp_sum  # 4. (N, K), sum; exps is used in lines 4 and 6: reuse
    dshifted = dexps * exps  # 3. (N, K), function: exp' = exp
    dx = dshifted  # 2. (N, K), add
    dx_max = -dshifted.sum(axis=-1, keepdims=True)  # 2. (N, 1), add; x_max was broadcast over the row
    dx = dx + xp.where(x == x_max, dx_max, 0.0)  # 1. (N, K), pick; reuse of x
    return y, dx
