"""Add an op: RMSNorm as a forward/backward pair, its proof, and a backend that has it.

    python docs/examples/add_an_op.py

Three steps. Write the pair on the library's convention. Prove it with the properties that the library's own ops must have.
Put it on a backend, where a model finds it. The proof needs SciPy and Hypothesis, which the extra `test` installs.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlite import ReferenceOps, array_namespace, gradcheck, testing

# ---- 1. the pair ----


def rmsnorm_forward(x, w, eps=1e-5):
    """y = x r w,  r = 1 / sqrt(mean(x^2) + eps), over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    x: (..., C) float.
    w: (C,) float, the gain.
    eps: added to the mean square, so that a row of zeros stays finite.
    Returns y: (..., C), and a cache of references to x and w plus r, one value per row.
    Raises ValueError when w is not of shape (C,).
    """
    xp = array_namespace(x, w)  # numpy or cupy: an op is written once for both
    if w.shape != x.shape[-1:]:
        raise ValueError(f"rmsnorm: x {x.shape} needs w of shape {x.shape[-1:]}, got {w.shape}")
    r = 1.0 / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)  # (..., 1)
    return x * r * w, (x, w, r)


def rmsnorm_backward(dy, cache):
    """dx = r (g - x r^2 mean(g x))  with  g = dy w;   dw = sum of dy x r over rows.

    dy: (..., C). Returns dx: (..., C) and dw: (C,).

    Derivation, for one row of C entries, y_i = x_i r w_i:
      1. w_i serves every row:        dw_i = sum over rows of dy_i x_i r.
      2. Into the normalised value:   g_i = dy_i w_i.
      3. x_i reaches x_j r in two ways:
           directly:                  d(x_j)/dx_i = [i = j]
           through r:                 dr/dx_i = -r^3 x_i / C
         so                           d(x_j r)/dx_i = r ([i = j] - r^2 x_i x_j / C).
      4. Summed against g_j:          dx_i = r (g_i - x_i r^2 mean(g x)).
    """
    x, w, r = cache
    array_namespace(dy, x)
    dw = (dy * x * r).reshape(-1, x.shape[-1]).sum(axis=0)  # 1. (N, C) -> (C,)
    g = dy * w  # 2. (..., C)
    g_x_mean = (g * x).mean(axis=-1, keepdims=True)  # 3. through r, (..., 1)
    dx = r * (g - x * r * r * g_x_mean)  # 4. (..., C)
    return dx, dw


# ---- 2. the proof ----

random = np.random.default_rng(seed=0)
inputs = {"x": random.standard_normal((2, 3, 5)), "w": random.standard_normal(5)}
print(gradcheck(rmsnorm_forward, rmsnorm_backward, inputs))


def rmsnorm_by_loops(x, w):
    """The value again, computed in another way: finite differences cannot notice that a forward is wrong."""
    y = np.empty_like(x)
    for row in np.ndindex(x.shape[:-1]):
        mean_square = sum(value**2 for value in x[row]) / len(w)
        y[row] = [value / np.sqrt(mean_square + 1e-5) * gain for value, gain in zip(x[row], w, strict=True)]
    return y


@st.composite
def drawn_inputs(draw):
    """Inputs of any shape: Hypothesis draws the shapes, and NumPy the values."""
    random = np.random.default_rng(draw(testing.seeds()))
    B, C = draw(testing.sizes()), draw(testing.sizes())
    return {"x": testing.weights(random, B, *draw(testing.leading()), C), "w": testing.gains(random, C)}


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(drawn_inputs())
def check_properties(inputs):
    """The properties that every op of the library must have. Each raises AssertionError with what it saw."""
    pair = rmsnorm_forward, rmsnorm_backward
    testing.check_gradients(*pair, inputs)
    testing.check_complex_step(*pair, inputs)
    testing.check_value(rmsnorm_forward, inputs, rmsnorm_by_loops)
    testing.check_read_only(*pair, inputs)
    testing.check_non_contiguous(*pair, inputs)
    testing.check_float32(*pair, inputs)
    testing.check_float_errors(*pair, inputs)
    testing.check_batch(*pair, inputs, batched=["x"])
    testing.check_empty_batch(*pair, inputs, batched=["x"])


check_properties()
print("every property holds for 25 drawn inputs")

# ---- 3. the backend ----


class MyOps(ReferenceOps):
    """The reference backend with RMSNorm. It goes wherever a ReferenceOps goes, into the training of gpt/ too."""

    name = "reference with rmsnorm"
    rmsnorm_forward = staticmethod(rmsnorm_forward)
    rmsnorm_backward = staticmethod(rmsnorm_backward)


def head_forward(ops, x, gain, w):
    """logits = rmsnorm(x) w: a layer that calls ops and computes nothing itself, so it runs on every backend that has them.

    x: (..., C). gain: (C,). w: (C, V).
    Returns logits: (..., V), and the two caches.
    """
    h, norm_cache = ops.rmsnorm_forward(x, gain)
    logits, linear_cache = ops.linear_forward(h, w)
    return logits, (norm_cache, linear_cache)


def head_backward(ops, dlogits, cache):
    """The chain rule, last step first. Returns dx, dgain and dw."""
    norm_cache, linear_cache = cache
    dh, dw, _ = ops.linear_backward(dlogits, linear_cache)
    dx, dgain = ops.rmsnorm_backward(dh, norm_cache)
    return dx, dgain, dw


ops = MyOps()
head_inputs = {"x": inputs["x"], "gain": inputs["w"], "w": random.standard_normal((5, 4))}
print(
    gradcheck(
        lambda **arrays: head_forward(ops, **arrays),
        lambda dlogits, cache: head_backward(ops, dlogits, cache),
        head_inputs,
    )
)
