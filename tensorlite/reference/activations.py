"""Activation functions: GELU (the default) and ReLU (the lecture's)."""

import math

from tensorlite.arrays import Array, array_namespace

SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715


def gelu_forward(x: Array) -> tuple[Array, Array]:
    """y = x (1 + tanh u) / 2,  u = sqrt(2/pi) (x + 0.044715 x^3). y is nearly x times the normal distribution function of x.

    x: any shape, float. Returns y of the same shape, and as cache a reference to x.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, the tanh form. Tests: tests/reference/test_ops.py[gelu].
    """
    xp = array_namespace(x)
    u = SQRT_2_OVER_PI * (x + CUBIC * x * x * x)
    y = 0.5 * x * (1.0 + xp.tanh(u))
    return y, x


def gelu_backward(dy: Array, cache: Array) -> Array:
    """dx = dy ((1 + tanh u) / 2 + x (1 - tanh^2 u) u' / 2),  u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2).

    dy and dx: the shape of x.

    Derivation, the product rule on y = x/2 * (1 + tanh u):
      1. d(x/2)/dx * (1 + tanh u) = (1 + tanh u) / 2
      2. d(tanh u)/dx             = (1 - tanh^2 u) u', with u' the derivative of the cubic
      3. dx                       = dy (1. + x/2 * 2.)
    """
    x = cache
    xp = array_namespace(dy, x)
    tanh = xp.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))  # as in forward
    du = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x)  # 2.
    dtanh = (1.0 - tanh * tanh) * du  # 2.
    dydx = 0.5 * (1.0 + tanh) + 0.5 * x * dtanh  # 1. and 3.
    return dy * dydx  # 3.


def relu_forward(x: Array) -> tuple[Array, Array]:
    """y = max(x, 0)

    x: any shape, float. Returns y of the same shape, and as cache a reference to y, which the next linear layer saves anyway.
    Tests: tests/reference/test_ops.py[relu].
    """
    xp = array_namespace(x)
    y = xp.maximum(x, 0.0)
    return y, y


def relu_backward(dy: Array, cache: Array) -> Array:
    """dx = dy where x > 0, else 0.

    dy and dx: the shape of x.

    Derivation:
      1. y = x has slope 1 and y = 0 has slope 0; y > 0 exactly where x > 0. At x = 0 there is no derivative; 0 is chosen.
    """
    y = cache
    xp = array_namespace(dy, y)
    return xp.where(y > 0, dy, 0.0)  # 1.
