"""Mistakes people make in GELU and ReLU."""

import numpy as np

from tensorlite.arrays import Array
from tensorlite.reference.activations import CUBIC, SQRT_2_OVER_PI, relu_backward
from tensorlite.testing.bugs.bug import bug


@bug(
    "gelu",
    "the cubic constant cut",
    "dx",
    how_it_happens="0.044715 was typed from memory.",
    explanation="The forward has 0.044715 and backward 0.0447: a relative error of about 1e-4 that a loose tolerance lets through.",
)
def _(dy: Array, cache: Array) -> Array:
    x = cache
    tanh = np.tanh(SQRT_2_OVER_PI * (x + 0.0447 * x**3))
    du = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.0447 * x * x)
    return dy * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * du)


@bug(
    "gelu",
    "sqrt(2/pi) cut",
    "dx",
    how_it_happens="sqrt(2/pi) was written as 0.79 in one of the two places.",
    explanation="Backward must differentiate the function that ran, digits included; 0.79 is off by 1 %.",
)
def _(dy: Array, cache: Array) -> Array:
    x = cache
    tanh = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x**3))
    du = 0.79 * (1.0 + 3.0 * CUBIC * x * x)
    return dy * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * du)


@bug(
    "gelu",
    "the 3 of the cube forgotten",
    "dx",
    how_it_happens="The power was lowered from 3 to 2 and the factor left behind.",
    explanation="d(x^3)/dx = 3 x^2. Near 0 the cube hardly matters, so small activations hide it.",
)
def _(dy: Array, cache: Array) -> Array:
    x = cache
    tanh = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x**3))
    du = SQRT_2_OVER_PI * (1.0 + CUBIC * x * x)
    return dy * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * du)


@bug(
    "gelu",
    "half of the product rule",
    "dx",
    how_it_happens="The hard part, the tanh, was differentiated, and the plain x in front of it forgotten.",
    explanation="y = x/2 (1 + tanh u) is a product of two functions of x; the term (1 + tanh u)/2 is missing.",
)
def _(dy: Array, cache: Array) -> Array:
    x = cache
    tanh = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x**3))
    du = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x)
    return dy * 0.5 * x * (1.0 - tanh * tanh) * du


@bug(
    "gelu",
    "the derivative of another approximation",
    "dx",
    how_it_happens="The GELU paper offers x sigmoid(1.702 x) too, and its derivative is shorter.",
    explanation="That is the derivative of a different function, off by up to 0.03; forward uses the tanh form.",
)
def _(dy: Array, cache: Array) -> Array:
    x = cache
    s = 1.0 / (1.0 + np.exp(-1.702 * x))
    return dy * (s + 1.702 * x * s * (1.0 - s))


def _gelu_by_sigmoid(x: Array) -> tuple[Array, Array]:
    return x / (1.0 + np.exp(-1.702 * x)), x


@bug(
    "gelu",
    "another approximation",
    "y",
    how_it_happens="The GELU paper offers x sigmoid(1.702 x) too, and it is shorter.",
    explanation="Forward and backward agree, and gelu(x) - gelu(-x) = x holds, but the values are those of another function.",
    forward=_gelu_by_sigmoid,
    caught_by="test_value_against_loops",
)
def _(dy: Array, cache: Array) -> Array:
    x = cache
    s = 1.0 / (1.0 + np.exp(-1.702 * x))
    return dy * (s + 1.702 * x * s * (1.0 - s))


@bug(
    "relu",
    "nothing is below zero",
    "dx",
    how_it_happens="The cache was changed from x to y to save memory, and the comparison kept its >=.",
    explanation="y = max(x, 0) is never below 0, so the gradient passes every dead unit; y > 0 tells them apart.",
)
def _(dy: Array, cache: Array) -> Array:
    y = cache
    return np.where(y >= 0, dy, 0.0)


@bug(
    "relu",
    "the gradient rectified",
    "dx",
    how_it_happens="A ReLU going backwards was taken to be a ReLU of the gradient.",
    explanation="The unit passes or blocks by the sign of its input. This blocks negative gradients, and is not linear in dy.",
)
def _(dy: Array, cache: Array) -> Array:
    y = cache
    return np.where(y > 0, np.maximum(dy, 0.0), 0.0)


@bug(
    "relu",
    "multiplied by the output",
    "dx",
    how_it_happens="The mask of live units was needed, and y, which is 0 for the dead ones, was at hand.",
    explanation="The slope of a live unit is 1, not its value: (y > 0), not y.",
)
def _(dy: Array, cache: Array) -> Array:
    y = cache
    return dy * y


def _relu_where(x: Array) -> tuple[Array, Array]:
    y = np.where(x > 0, x, 0.0)
    return y, y


@bug(
    "relu",
    "NaN turned into 0",
    "y",
    how_it_happens="x where x > 0, else 0: the definition, word for word.",
    explanation="NaN > 0 is false, so a NaN leaves as a clean 0 and its cause is never found; maximum(x, 0) passes it on.",
    forward=_relu_where,
    caught_by="test_activations_pass_nan_on",
)
def _(dy: Array, cache: Array) -> Array:
    return relu_backward(dy, cache)
