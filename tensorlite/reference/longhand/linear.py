"""The linear layer in the long form: a matmul is a product and a sum."""

from tensorlite.arrays import Array, array_namespace


def longhand_linear(x: Array, w: Array, b: Array, dy: Array) -> tuple[Array, Array, Array, Array]:
    """y_nd = sum_c x_nc w_cd + b_d

    x: (N, C).
    w: (C, D).
    b: (D,).
    dy: (N, D).
    Returns y: (N, D), dx: (N, C), dw: (C, D), db: (D,).

    The fused form: lines 2 and 1 of backward together are dx_nc = sum_d dy_nd w_cd and dw_cd = sum_n x_nc dy_nd, steps 1 and 2 of
    linear_backward. As matmuls these two sums are dy w^T and x^T dy: a matmul sums over the index in the middle, and the transposes
    put d and n there. Line 3 is step 3.
    """
    xp = array_namespace(x, w, b, dy)
    terms = x[:, :, None] * w  # 1. (N, C, 1) * (C, D) -> (N, C, D)
    sums = terms.sum(axis=1)  # 2. (N, D)
    y = sums + b  # 3. (N, D) + (D,)

    dsums = dy  # 3. (N, D), add
    db = dy.sum(axis=0)  # 3. (D,), add; b was broadcast over n
    dterms = xp.broadcast_to(dsums[:, None, :], terms.shape)  # 2. (N, C, D), sum
    dx = (dterms * w).sum(axis=2)  # 1. (N, C), product; x was broadcast over d
    dw = (dterms * x[:, :, None]).sum(axis=0)  # 1. (C, D), product; w was broadcast over n
    return y, dx, dw, db
