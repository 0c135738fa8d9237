"""Mistakes that real projects made in public, each as a small layer in our own words: the mistake is refused, the right one passes.

The numbers are the rows of the list that they were collected in.
"""

import numpy as np
import pytest

from tensorlite import gradcheck

RANDOM = np.random.default_rng(0).standard_normal


def verdict(forward, backward, inputs):
    return gradcheck(forward, backward, inputs, raise_on_fail=False)


# ---- row 10: the sum of a bias gradient without keepdims, hidden by a comparison that broadcasts ----


def bias_forward(x, b):
    """y = x + b, with b of shape (1, C)."""
    return x + b, None


def bias_backward(dy, _):
    return dy, dy.sum(axis=0, keepdims=True)


def bias_backward_without_keepdims(dy, _):
    return dy, dy.sum(axis=0)


def test_row_10_a_gradient_that_only_broadcasts_to_the_right_shape():
    inputs = {"x": RANDOM((5, 4)), "b": RANDOM((1, 4))}
    assert verdict(bias_forward, bias_backward, inputs).ok
    wrong = verdict(bias_forward, bias_backward_without_keepdims, inputs)
    assert wrong.contract_violations == [
        "db is (4,) float64, b is (1, 4) float64. db has the values of the truth in the shape (4,) instead of (1, 4)"
    ]


# ---- rows 17 to 20: attention ----


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dp, p):
    return p * (dp - (dp * p).sum(axis=-1, keepdims=True))


def split(x, heads):
    """(B, T, C) -> (B, H, T, D)."""
    B, T, C = x.shape
    return x.reshape(B, T, heads, C // heads).transpose(0, 2, 1, 3)


def merge(x):
    """(B, H, T, D) -> (B, T, C)."""
    B, H, T, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * D)


def merge_without_transposing(x):
    B, H, T, D = x.shape
    return x.reshape(B, T, H * D)


def attention_forward(q, k, v, heads):
    qh, kh, vh = (split(x, heads) for x in (q, k, v))
    p = softmax(qh @ kh.swapaxes(-1, -2) / np.sqrt(qh.shape[-1]))
    return merge(p @ vh), (qh, kh, vh, p)


def head_gradients(dy, cache):
    """Return dq, dk and dv with the axis of heads."""
    qh, kh, vh, p = cache
    dyh = split(dy, qh.shape[1])
    ds = softmax_backward(dyh @ vh.swapaxes(-1, -2), p) / np.sqrt(qh.shape[-1])
    return ds @ kh, ds.swapaxes(-1, -2) @ qh, p.swapaxes(-1, -2) @ dyh


def attention_backward(dy, cache):
    return tuple(map(merge, head_gradients(dy, cache)))


def heads_merged_in_the_order_of_memory(dy, cache):
    """Row 17: the values of different heads and places change places, and every shape is right."""
    return tuple(map(merge_without_transposing, head_gradients(dy, cache)))


def queries_and_keys_swapped(dy, cache):
    """Row 17 again: dk is returned for q, and dq for k."""
    dq, dk, dv = attention_backward(dy, cache)
    return dk, dq, dv


def keys_and_values_transposed_twice(dy, cache):
    """Row 18: dk and dv come transposed out of their matmuls, and are transposed once more before the heads are merged."""
    dq, dk, dv = head_gradients(dy, cache)
    B, H, T, D = dk.shape
    return merge(dq), *(merge(x.swapaxes(-1, -2).reshape(B, H, T, D)) for x in (dk, dv))


@pytest.mark.parametrize(
    ("backward", "wrong"),
    [
        (attention_backward, set()),
        (heads_merged_in_the_order_of_memory, {"q", "k", "v"}),
        (queries_and_keys_swapped, {"q", "k"}),
        (keys_and_values_transposed_twice, {"k", "v"}),
    ],
)
@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 3, 6)])
def test_rows_17_and_18_axes_of_attention(backward, wrong, shape):
    inputs = {"q": RANDOM(shape), "k": RANDOM(shape), "v": RANDOM(shape), "heads": 2}
    report = verdict(attention_forward, backward, inputs)
    assert not report.contract_violations
    assert {argument.name for argument in report.arguments if argument.status == "fail"} == wrong


def fused_softmax(x):
    return softmax(x), None


def linear_softmax_forward(x, w):
    """y = softmax(x w), where the softmax is one fused operation."""
    y, _ = fused_softmax(x @ w)
    return y, (x, w, y)


def linear_softmax_backward(dy, cache):
    x, w, y = cache
    ds = softmax_backward(dy, y)
    return ds @ w.T, x.T @ ds


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        (lambda dx, dw: (None, None), "dw is None or missing"),
        (lambda dx, dw: {}, "backward returns 0 gradients for the 2 inputs"),
        (lambda dx, dw: None, "backward returned None. Is its return statement missing?"),
        (lambda dx, dw: (dx,), "backward returns 1 gradient for the 2 inputs"),
        (lambda dx, dw: (dx * 0, dw * 0), "fail         dw"),
        (lambda dx, dw: (dx, np.zeros_like(dw)), "fail         dw"),
    ],
)
def test_row_19_a_fused_softmax_that_passes_no_gradient_on(absent, words):
    """Absent gradients are no error anywhere else: training runs, and the layers below do not learn."""
    inputs = {"x": RANDOM((3, 4)), "w": RANDOM((4, 5))}
    assert verdict(linear_softmax_forward, linear_softmax_backward, inputs).ok
    report = verdict(linear_softmax_forward, lambda dy, c: absent(*linear_softmax_backward(dy, c)), inputs)
    assert report.status == "fail"
    assert words in str(report)


def marked_forward(scores, v, mask):
    """Attention with dropout at 1/2. The saved probabilities are negative where they were dropped, which saves a mask."""
    p = softmax(scores)
    return (2 * p * mask) @ v, (np.where(mask, p, -p), v)


def marked_backward(dy, cache, dscore):
    marked, v = cache
    kept = np.maximum(marked, 0)
    dp = 2 * dy @ v.T
    d = (kept * dp).sum(axis=-1, keepdims=True)
    return dscore(marked, dp, d), 2 * kept.T @ dy


def by_the_mark(p, dp, d):
    """A kept probability has p (dp - d); for a dropped one dp counts as 0, which leaves -p d with p = |marked|."""
    return p * np.where(p >= 0, dp - d, d)


def without_the_mark(p, dp, d):
    """The formula of a plain softmax, right only where nothing is dropped."""
    return p * (dp - d)


def by_a_sign_that_is_no_mark(p, dp, d):
    """The branch where the sign that it asks for does not say what was dropped."""
    return abs(p) * np.where(dp >= 0, dp - d, d)


@pytest.mark.parametrize("dscore", [by_the_mark, without_the_mark, by_a_sign_that_is_no_mark])
def test_row_20_a_branch_on_the_sign_of_the_probabilities(dscore):
    mask = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]])
    inputs = {"scores": RANDOM((3, 4)), "v": RANDOM((4, 2)), "mask": mask}
    report = verdict(marked_forward, lambda dy, c: marked_backward(dy, c, dscore), inputs)
    assert {argument.name for argument in report.arguments if argument.status == "fail"} == (
        set() if dscore is by_the_mark else {"scores"}
    )


# ---- row 22: a layernorm whose backward takes its input for a matrix ----


def layernorm_forward(x, w):
    mean = x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + 1e-5)
    xhat = (x - mean) * rstd
    return xhat * w, (xhat, rstd, w)


def layernorm_backward(dy, cache):
    xhat, rstd, w = cache
    g = dy * w
    dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx, (dy * xhat).reshape(-1, w.size).sum(axis=0)


def layernorm_backward_of_a_matrix(dy, cache):
    """Rows are counted by the first axis, so of (B, T, C) only the first B rows are read and written."""
    xhat, rstd, w = cache
    rows, C = dy.shape[0], dy.shape[-1]
    dx = np.zeros_like(dy)
    matrices = (a.reshape(-1, a.shape[-1])[:rows] for a in (dy, xhat, rstd))
    dx.reshape(-1, C)[:rows], dw = layernorm_backward(next(matrices), (next(matrices), next(matrices), w))
    return dx, dw


def test_row_22_a_layernorm_for_matrices_alone():
    for shape, fits in (((6, 4), True), ((2, 3, 4), False), ((1, 3, 4), False), ((3, 1, 4), True)):
        inputs = {"x": RANDOM(shape), "w": RANDOM(4)}
        assert verdict(layernorm_forward, layernorm_backward, inputs).ok
        assert verdict(layernorm_forward, layernorm_backward_of_a_matrix, inputs).ok is fits
    report = verdict(layernorm_forward, layernorm_backward_of_a_matrix, {"x": RANDOM((2, 3, 4)), "w": RANDOM(4)})
    assert {argument.name for argument in report.arguments if argument.status == "fail"} == {"x", "w"}
