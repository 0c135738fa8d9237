"""Properties that every hand-derived layer should have, as functions to call from a test suite.

Finite differences alone cannot prove a layer right: the backward of a wrong forward passes them. Draw inputs with the strategies
below (they need Hypothesis) and call the `check_*` functions, which raise AssertionError if the property does not hold. Each takes
the layer as `forward(**inputs) -> y, cache` and `backward(dy, cache)`, and its inputs by name in float64.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensorlite.arrays import Array
from tensorlite.testing.gradcheck import gradcheck
from tensorlite.testing.trees import as_tuple, map_arrays

Inputs = Mapping[str, Any]
EPS32 = float(np.finfo(np.float32).eps)


# ---- strategies ----


def seeds() -> st.SearchStrategy[int]:
    """Seeds of a NumPy generator. Hypothesis draws the shapes; NumPy draws the values, fast and never degenerate."""
    return st.integers(0, 2**32 - 1)


def sizes(most: int = 5) -> st.SearchStrategy[int]:
    """Axis lengths from 1 on, since broadcasting hides mistakes where an axis has length 1."""
    return st.integers(1, most)


def leading(most: int = 2, longest: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of the axes in front of the last one, of which there may be none."""
    return st.lists(sizes(longest), min_size=0, max_size=most).map(tuple)


def weights(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Values of size about 1: small ones hide wrong terms behind the tolerance."""
    return random.standard_normal(shape)


def gains(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Random multipliers that are not close to 1, 0 or each other."""
    return random.uniform(0.5, 2.0, shape) * random.choice([-1.0, 1.0], shape)


# ---- properties ----


def check_gradients(forward: Callable, backward: Callable, inputs: Inputs, **options: Any) -> None:
    """The contract holds, and the gradients agree with finite differences."""
    gradcheck(forward, backward, inputs, **options)


def check_complex_step(forward: Callable, backward: Callable, inputs: Inputs) -> None:
    """The gradients agree with the complex step, an independent method that is exact to rounding."""
    gradcheck(forward, backward, inputs, method="complex", rtol=1e-11, atol=1e-13)


def check_value(forward: Callable, inputs: Inputs, reference: Callable[..., Any], rtol: float = 1e-12) -> None:
    """The value agrees with an independent reference: loops, or another library."""
    y, _ = forward(**inputs)
    np.testing.assert_allclose(as_tuple(y)[0], reference(**inputs), rtol=rtol, atol=rtol)


def check_read_only(forward: Callable, backward: Callable, inputs: Inputs) -> None:
    """Read-only inputs and dy are accepted and give equal gradients."""
    y, cache = forward(**inputs)
    dy = _cotangent(y)
    expected = as_tuple(backward(dy, cache))
    frozen = {name: _frozen(a) for name, a in inputs.items()}
    y, cache = forward(**frozen)
    grads = as_tuple(backward(map_arrays(_frozen, dy), cache))
    for a, b in zip(expected, grads, strict=True):
        np.testing.assert_array_equal(a, b)


def check_non_contiguous(forward: Callable, backward: Callable, inputs: Inputs, rtol: float = 1e-12) -> None:
    """Inputs and dy with gaps in memory or negative strides give the same values, up to the rounding of another summation order."""
    y, cache = forward(**inputs)
    dy = _cotangent(y)
    expected = (*as_tuple(y), *as_tuple(backward(dy, cache)))
    for spread in (_with_gaps, _reversed):
        y, cache = forward(**{name: spread(a) for name, a in inputs.items()})
        found = (*as_tuple(y), *as_tuple(backward(map_arrays(spread, dy), cache)))
        for a, b in zip(expected, found, strict=True):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def check_float32(forward: Callable, backward: Callable, inputs: Inputs, ulps: float = 64) -> None:
    """With float32 inputs, results are float32 and close to those of the same values in float64.

    ulps: the allowed difference, in units of the float32 epsilon times the largest entry of the float64 result (or 1).
    """
    inputs = {name: _as32(a) for name, a in inputs.items()}  # float64 starts from the same rounded values
    y, cache = forward(**{name: _as64(a) for name, a in inputs.items()})
    dy = map_arrays(_as32, _cotangent(y))
    twin = (*as_tuple(y), *as_tuple(backward(map_arrays(_as64, dy), cache)))
    y32, cache = forward(**inputs)
    found = (*as_tuple(y32), *as_tuple(backward(dy, cache)))
    for a, b in zip(twin, found, strict=True):
        if a is None:
            assert b is None
            continue
        assert b.dtype == np.float32, f"float32 in, {b.dtype} out"
        bound = ulps * EPS32 * max(1.0, float(np.abs(a).max(initial=0.0)))
        error = float(np.abs(a - b).max(initial=0.0))
        assert error <= bound, f"the float32 error is {error / bound:.2g} times its bound"


def check_float_errors(forward: Callable, backward: Callable, inputs: Inputs) -> None:
    """No overflow, division by zero or invalid operation occurs on ordinary inputs."""
    with np.errstate(all="raise", under="ignore"):
        y, cache = forward(**inputs)
        backward(_cotangent(y), cache)


def check_batch(
    forward: Callable, backward: Callable, inputs: Inputs, batched: Iterable[str], mean: bool = False, rtol: float = 1e-11
) -> None:
    """Rows do not mix: permuting the batch permutes the results, and the gradients of a batch are those of its two halves.

    batched: names of the inputs whose first axis is the batch.
    mean: y is a mean over rows, so a half counts in proportion to its rows.
    """
    batched = set(batched)
    _check_permuted_batch(forward, backward, inputs, batched, mean, rtol)
    _check_halves_of_batch(forward, backward, inputs, batched, mean, rtol)


def _check_permuted_batch(
    forward: Callable, backward: Callable, inputs: Inputs, batched: set[str], mean: bool, rtol: float
) -> None:
    y, cache = forward(**inputs)
    dy = _cotangent(y)
    expected = _gradients(backward, dy, cache, inputs)
    order = np.random.default_rng(1).permutation(_batch_size(inputs, batched))
    permuted = {name: a[order] if name in batched else a for name, a in inputs.items()}
    y_permuted, cache = forward(**permuted)
    np.testing.assert_allclose(y_permuted, y if mean else y[order], rtol=rtol, atol=rtol)
    grads = _gradients(backward, dy if mean else dy[order], cache, inputs)
    for name, g in expected.items():
        np.testing.assert_allclose(grads[name], g[order] if name in batched else g, rtol=rtol, atol=rtol)


def _check_halves_of_batch(
    forward: Callable, backward: Callable, inputs: Inputs, batched: set[str], mean: bool, rtol: float
) -> None:
    """Gradients of batched inputs are those of the halves side by side; gradients of shared inputs are their sum."""
    y, cache = forward(**inputs)
    dy = _cotangent(y)
    expected = _gradients(backward, dy, cache, inputs)
    B = _batch_size(inputs, batched)
    halves = []
    for rows in (slice(0, B // 2), slice(B // 2, B)):
        n = rows.stop - rows.start
        if n == 0:
            continue
        half = {name: a[rows] if name in batched else a for name, a in inputs.items()}
        _, cache = forward(**half)
        halves.append(_gradients(backward, dy * n / B if mean else dy[rows], cache, half))
    for name, g in expected.items():
        parts = [grads[name] for grads in halves]
        found = np.concatenate(parts) if name in batched else sum(parts)
        np.testing.assert_allclose(found, g, rtol=rtol, atol=rtol)


def check_empty_batch(forward: Callable, backward: Callable, inputs: Inputs, batched: Iterable[str]) -> None:
    """A batch without rows gives empty results and, for the shared inputs, zero gradients."""
    batched = set(batched)
    empty = {name: a[:0] if name in batched else a for name, a in inputs.items()}
    y, cache = forward(**empty)
    assert y.shape[0] == 0
    for name, g in _gradients(backward, _cotangent(y), cache, empty).items():
        assert g.shape == empty[name].shape
        assert not g.any()


# ---- helpers ----


def _cotangent(y: Any) -> Any:
    """Return a random dy. A dy of ones would hide every error that sums to zero."""
    random = np.random.default_rng(0)
    return map_arrays(lambda a: np.asarray(random.standard_normal(a.shape), dtype=a.dtype), y)


def _is_float(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def _gradients(backward: Callable, dy: Any, cache: Any, inputs: Inputs) -> dict[str, Array]:
    """Return the gradients by name. Backward returns one per float array, and None for a parameter that is None."""
    names = [name for name, a in inputs.items() if a is None or _is_float(a)]
    gradients = zip(names, as_tuple(backward(dy, cache)), strict=True)
    return {name: g for name, g in gradients if g is not None}


def _batch_size(inputs: Inputs, batched: set[str]) -> int:
    return next(len(a) for name, a in inputs.items() if name in batched)


def _frozen(a: Any) -> Any:
    if isinstance(a, np.ndarray):
        a = a.copy()
        a.flags.writeable = False
    return a


def _as32(a: Any) -> Any:
    return a.astype(np.float32) if _is_float(a) else a


def _as64(a: Any) -> Any:
    return a.astype(np.float64) if _is_float(a) else a


def _with_gaps(a: Any) -> Array:
    if not isinstance(a, np.ndarray) or a.ndim == 0:
        return a
    spread = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    spread[..., ::2] = a
    return spread[..., ::2]


def _reversed(a: Any) -> Array:
    if not isinstance(a, np.ndarray) or a.ndim == 0:
        return a
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]
