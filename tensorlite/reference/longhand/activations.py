"""GELU in the long form: x is used four times, and every use adds to dx."""

import math

from tensorlite.arrays import Array, array_namespace


def longhand_gelu(x: Array, dy: Array) -> tuple[Array, Array]:
    """y = x/2 (1 + tanh u),  u = sqrt(2/pi) (x + 0.044715 x^3)

    x: any shape.
    dy: the shape of x.
    Returns y, dx: the shape of x. So has every line.

    The fused form: lines 9 and 8 of backward, the first dx, are step 1 of gelu_backward. Line 9 with lines 7 to 1 is x/2 times its
    step 2. There u' = sqrt(2/pi) (1 + 0.044715 (x^2 + 2 x^2)): line 4 adds the 1, line 2 the x^2, line 1 the 2 x^2.
    """
    xp = array_namespace(x, dy)
    square = x * x  # 1.
    cube = square * x  # 2.
    cubic = 0.044715 * cube  # 3.
    inner = x + cubic  # 4.
    u = math.sqrt(2.0 / math.pi) * inner  # 5.
    tanh = xp.tanh(u)  # 6.
    one_plus_tanh = 1.0 + tanh  # 7.
    half_x = 0.5 * x  # 8.
    y = half_x * one_plus_tanh  # 9.

    dhalf_x = dy * one_plus_tanh  # 9. product
    done_plus_tanh = dy * half_x  # 9. product
    dx = 0.5 * dhalf_x  # 8. constant; the first of four parts of dx
    dtanh = done_plus_tanh  # 7. constant
    du = dtanh * (1.0 - tanh**2)  # 6. function: tanh' = 1 - tanh^2
    dinner = math.sqrt(2.0 / math.pi) * du  # 5. constant
    dx = dx + dinner  # 4. add; reuse of x
    dcubic = dinner  # 4. add
    dcube = 0.044715 * dcubic  # 3. constant
    dsquare = dcube * x  # 2. product
    dx = dx + dcube * square  # 2. product; reuse of x
    dx = dx + dsquare * 2.0 * x  # 1. product: both factors are x; reuse of x
    return y, dx
