"""Test a layer of your own in three lines: name the shapes of its inputs, and every property is checked at drawn inputs.

    python docs/examples/property_test.py

The layer is a convolution over time with one kernel per channel. The same call works in a test, in a script and in a notebook. In
a file of tests it can stand above a function that returns the layer:

    @check_layer("x: B T+K C, w: K C")
    def test_depthwise():
        return depthwise_forward, depthwise_backward

This needs SciPy, which the extra `check` installs. The last part needs Hypothesis too.
"""

import numpy as np
from hypothesis import given, settings

from tensorlite.testing import CheckLayerError, check_layer, drawn_inputs


def depthwise_forward(x, w):
    """y_t = sum over k of x_{t+k} w_k, each channel by itself.

    x: (B, S, C) float.
    w: (K, C) float, with K <= S.
    Returns y: (B, S - K + 1, C), and a cache of references to x and w.
    """
    T = x.shape[1] - len(w) + 1
    y = np.zeros((len(x), T, x.shape[2]), x.dtype)
    for k in range(len(w)):
        y += x[:, k : k + T] * w[k]
    return y, (x, w)


def depthwise_backward(dy, cache):
    """dx_{t+k} += dy_t w_k,  dw_k = sum over rows and t of dy_t x_{t+k}.

    dy: (B, T, C). Returns dx: (B, S, C) and dw: (K, C).
    """
    x, w = cache
    T = dy.shape[1]
    dx = np.zeros_like(x)
    dw = np.zeros_like(w)
    for k in range(len(w)):
        dx[:, k : k + T] += dy * w[k]  # the windows overlap, so their gradients add
        dw[k] = (dy * x[:, k : k + T]).sum(axis=(0, 1))
    return dx, dw


# Equal letters are axes of equal length. T+K is at least as long as K, so that the kernel fits.
right = check_layer(depthwise_forward, depthwise_backward, "x: B T+K C, w: K C")
print(right)


def forgetful_backward(dy, cache):
    """The same with = in the place of +=, which a kernel of length 1 does not notice."""
    x, w = cache
    T = dy.shape[1]
    dx = np.zeros_like(x)
    dw = np.zeros_like(w)
    for k in range(len(w)):
        dx[:, k : k + T] = dy * w[k]
        dw[k] = (dy * x[:, k : k + T]).sum(axis=(0, 1))
    return dx, dw


# The error names the smallest example that fails, three steps and a kernel of K = 2, and ends with code to paste that repeats it.
try:
    check_layer(depthwise_forward, forgetful_backward, "x: B T+K C, w: K C")
except CheckLayerError as error:
    wrong = error
    print(f"\nThe backward that forgets:\n{wrong}")


# A batch normalisation mixes the rows of a batch on purpose, and has no value for a batch without rows.
def center_forward(x):
    """y = x - the mean over the batch. x: (B, C) float. Returns y, and None for a cache."""
    return x - x.mean(axis=0), None


def center_backward(dy, _):
    """dx = dy - the mean of dy over the batch."""
    return dy - dy.mean(axis=0)


print()
print(check_layer(center_forward, center_backward, "x: B C", skip=("rows", "empty_batch")))


# A property of this layer alone: Hypothesis draws the same inputs for a test of your own.
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(drawn_inputs("x: B T+K C, w: K C"))
def check_causality(inputs):
    """A window does not see the steps before it."""
    y, _ = depthwise_forward(**inputs)
    later = inputs | {"x": inputs["x"] * (np.arange(inputs["x"].shape[1]) > 0)[:, None]}  # the first step becomes 0
    y_later, _ = depthwise_forward(**later)
    np.testing.assert_array_equal(y_later[:, 1:], y[:, 1:])


check_causality()
print("the windows are where they should be")
