"""Layers as users write them: losses that are floats, objects, nested parameters, seeds, arrays in Fortran's order."""

import numpy as np
import pytest

from tensorlite import GradcheckError, gradcheck
from tensorlite.testing import check_layer, of_loss, of_object
from tensorlite.testing.properties import check_float32, check_non_contiguous, check_read_only
from tensorlite.testing.property_tests import CheckLayerError

RANDOM = np.random.default_rng(0).standard_normal


def refused(forward, backward, specification, **options):
    with pytest.raises(CheckLayerError) as caught:
        check_layer(forward, backward, specification, **options)
    return caught.value


def double_forward(x):
    return 2 * x, None


def double_backward(dy, _):
    return 2 * dy


# ---- right layers pass ----


def squared_error(pred, target):
    error = pred - target
    return float((error**2).mean()), error


def squared_error_backward(dloss, error):
    dpred = 2 * dloss * error / error.size
    return dpred, -dpred


def test_a_loss_that_is_a_float_has_every_property():
    report = check_layer(squared_error, squared_error_backward, "pred: ... C, target: ... C", batch=None, examples=5)
    assert {"leading", "float32"} <= set(report.checked)
    report = check_layer(squared_error, squared_error_backward, "pred: B C, target: B C", mean=True, examples=5)
    assert "rows" in report.checked


def test_a_loss_with_its_gradients_has_every_property():
    def loss_and_grads(x, w):
        error = x @ w
        return float((error**2).sum()), {"x": 2 * error @ w.T, "w": 2 * x.T @ error}

    check_layer(*of_loss(loss_and_grads), "x: B C, w: C D", batch=None, examples=5)


class Linear:
    def __init__(self):
        self.W, self.dW = RANDOM((3, 4)), np.zeros((3, 4))
        self.b, self.db = RANDOM(4), np.zeros(4)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy):
        self.dW += self.x.T @ dy
        self.db += dy.sum(axis=0)
        return dy @ self.W.T


class Forgetful(Linear):
    def backward(self, dy):
        dx = super().backward(dy)
        self.db *= 2.0
        return dx


def test_an_object_has_every_property():
    report = check_layer(*of_object(Linear()), "x: B 3", examples=5)
    assert {"rows", "float32", "empty_batch"} <= set(report.checked)


def test_a_wrong_object_is_refused_with_code_that_repeats_it():
    forward, backward = of_object(Forgetful())
    error = refused(forward, backward, "x: B 3")
    assert "fail         db (4,)" in str(error)
    with pytest.raises(GradcheckError, match="db"):
        exec(error.snippet, {"forward": forward, "backward": backward})


def prelu(x, alpha):
    return np.where(x > 0, x, alpha * x), (x, alpha)


def test_the_gradient_of_a_float32_scalar_may_be_a_float():
    def backward(dy, cache):
        x, alpha = cache
        return np.where(x > 0, dy, alpha * dy), float((dy * x)[x <= 0].sum())

    check_layer(prelu, backward, "x: B C, alpha:", examples=5)


def test_an_integer_without_axes_is_a_seed():
    def forward(x, seed):
        mask = np.random.default_rng(seed).integers(0, 2, x.shape[1:])
        return (x * mask).astype(x.dtype), mask

    check_layer(forward, lambda dy, mask: (dy * mask).astype(dy.dtype), "x: B C, seed: int<1000", examples=5)


def nested_forward(x, p):
    return x @ p["w"] + p["b"], (x, p)


def nested_backward(dy, cache):
    x, p = cache
    return dy @ p["w"].T, {"w": x.T @ dy, "b": dy.sum(axis=0)}


def test_properties_reach_into_nested_inputs():
    inputs = {"x": RANDOM((5, 3)), "p": {"w": RANDOM((3, 4)), "b": RANDOM(4)}}
    for check in (check_read_only, check_non_contiguous, check_float32):
        check(nested_forward, nested_backward, inputs)

    def writing_forward(x, p):
        p["w"] *= 1.0
        return nested_forward(x, p)

    with pytest.raises(ValueError, match="read-only"):
        check_read_only(writing_forward, nested_backward, inputs)


# ---- wrong layers are refused ----


def largest_forward(x):
    return x.max(axis=-1), x


def largest_backward(dy, x):
    """On an array in Fortran's order, reshape(-1) is a copy, and dx stays 0."""
    dx = np.zeros_like(x)
    dx.reshape(-1)[np.arange(x.shape[0]) * x.shape[1] + x.argmax(axis=-1)] = dy
    return dx


def test_fortran_order_is_tried():
    assert refused(largest_forward, largest_backward, "x: B C").property == "non_contiguous"
    x = RANDOM((4, 5))
    assert gradcheck(largest_forward, largest_backward, {"x": x}).ok
    with pytest.raises(GradcheckError, match="dx is zero everywhere"):
        gradcheck(largest_forward, largest_backward, {"x": np.asfortranarray(x)})


@pytest.mark.parametrize("special", [lambda B, T, H, D: B == T == H == D == 1, lambda B, T, H, D: T == H == D])
def test_mistakes_at_equal_lengths_are_found(special):
    error = refused(double_forward, lambda dy, _: dy * (3 if special(*dy.shape) else 2), "x: B T H D")
    assert error.property == "gradients"


@pytest.mark.parametrize("kind", ["raises", "float64"])
def test_in_float32_only_inexact_values_are_a_doubt(kind):
    """One length in five is 5, so few examples fail."""

    def forward(x):
        if x.dtype == np.float32 and x.shape == (5, 4):
            if kind == "raises":
                raise RuntimeError("no float32 here")
            return 2 * x.astype(np.float64), None
        return 2 * x, None

    error = refused(forward, double_backward, "x: B C")
    assert error.property == "float32"
    assert "as at" not in str(error)


# ---- what is said ----


def test_the_gradient_of_a_python_float_is_not_waved_through():
    def backward(dy, cache):
        x, alpha = cache
        return np.where(x > 0, dy, alpha * dy), 3 * (dy * x)[x <= 0].sum()

    inputs = {"x": RANDOM((3, 4)), "alpha": 0.25}
    report = gradcheck(prelu, backward, inputs, raise_on_fail=False)
    assert report.status == "inconclusive"
    assert "dalpha (): not checked; A Python float has no gradient that can be checked: make it an array" in str(report)
    assert gradcheck(prelu, backward, inputs, wrt=["x"]).ok
    with pytest.raises(ValueError, match=r"wrt names 'alpha'.*np\.asarray"):
        gradcheck(prelu, backward, inputs, wrt=["alpha"])
    with pytest.raises(ValueError, match=r"np\.asarray"):
        gradcheck(lambda alpha: (2 * alpha, None), double_backward, {"alpha": 0.25})
    with pytest.raises(GradcheckError, match="dalpha is 3 times the truth"):
        gradcheck(prelu, backward, inputs | {"alpha": np.asarray(0.25)})


def test_the_alpha_of_an_object_is_named_too():
    class PReLU:
        alpha, dalpha = 0.25, 0.0

        def forward(self, x):
            return prelu(x, self.alpha)[0]

        def backward(self, dy):
            return dy

    with pytest.raises(ValueError, match=r"no float array 'alpha'.*np\.asarray"):
        gradcheck(*of_object(PReLU(), parameters=["alpha"]), {"x": RANDOM(3)})


def test_an_error_of_the_layer_is_shown_as_its_own():
    def forward(x):
        assert x.flags.writeable
        return 2 * x, None

    error = refused(forward, double_backward, "x: B C")
    assert error.property == "read_only"
    assert "AssertionError: " in str(error)
    assert isinstance(error.__cause__, AssertionError)


def test_a_gradient_is_called_by_the_name_of_its_input():
    def forward(ids, table, scale):
        return table[ids] * scale, (ids, table, scale)

    def backward(dy, cache):
        ids, table, scale = cache
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids, dy * scale)
        if not ids.size:
            dtable += np.nan
        return None, dtable, (dy * table[ids]).sum(axis=tuple(range(ids.ndim)))

    error = refused(forward, backward, "ids: B int<V, table: V C, scale: C")
    assert error.property == "empty_batch"
    assert "dtable of an empty batch is NaN" in str(error)


def test_inputs_that_forward_does_not_take_are_one_error():
    with pytest.raises(ValueError, match="forward takes"):
        check_layer(double_forward, double_backward, "x: B C, w: C")


def test_twin_belongs_to_gradcheck():
    with pytest.raises(TypeError, match=r"gradcheck\(\.\.\., twin=\.\.\.\)"):
        check_layer(double_forward, double_backward, "x: B C", twin=(double_forward, double_backward))


def test_an_output_of_integers_is_told_where_it_belongs():
    with pytest.raises(ValueError, match="integers, belongs in the cache"):
        gradcheck(lambda x: ((x.max(-1), x.argmax(-1)), x), largest_backward, {"x": RANDOM((3, 4))})


def test_one_wrong_entry_is_no_factor_per_row():
    """The product of a row has one derivative that is not 0 where one entry is 0. The other rows are right up to rounding."""
    x = RANDOM((3, 4))
    x[1, 2] = 0.0

    def backward(dy, x):
        return np.where(x == 0, 0.0, dy[:, None] * x.prod(axis=-1, keepdims=True) / np.where(x == 0, 1.0, x))

    report = gradcheck(lambda x: (x.prod(axis=-1), x), backward, {"x": x}, raise_on_fail=False)
    assert report.arguments[0].bad == 1
    assert "constant along axis" not in str(report)
