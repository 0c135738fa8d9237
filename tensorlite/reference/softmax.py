"""Softmax over the last axis."""

from tensorlite.arrays import Array, array_namespace


def softmax_forward(x: Array) -> tuple[Array, Array]:
    """y_i = exp(x_i) / sum_j exp(x_j)

    x: (..., K) float, where -inf means "never". Subtracting the row's largest entry first leaves y unchanged and keeps exp finite.
    Returns y: (..., K), rows summing to 1, and as cache a reference to y.
    Raises ValueError when K is 0. Tests: tests/reference/test_ops.py[softmax].
    """
    xp = array_namespace(x)
    if x.shape[-1] == 0:
        raise ValueError("softmax: the last axis is empty")
    e = xp.exp(x - x.max(axis=-1, keepdims=True))  # (..., K)
    y = e / e.sum(axis=-1, keepdims=True)
    return y, y


def softmax_backward(dy: Array, cache: Array) -> Array:
    """dx = y (dy - sum(dy y))

    dy and dx: (..., K).

    Derivation, for one row:
      1. dy_j/dx_i = y_j ([i = j] - y_i): raising x_i lifts y_i and pushes every y_j down through the shared sum.
      2. Against dy: dx_i = sum_j dy_j y_j ([i = j] - y_i) = y_i (dy_i - sum_j dy_j y_j).
    """
    y = cache
    array_namespace(dy, y)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))  # 1. and 2. (..., K)
