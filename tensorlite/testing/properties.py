"""Properties that every hand-derived layer should have, as functions to call from a test suite.

Finite differences alone cannot prove a layer right: the backward of a wrong forward passes them. Draw inputs with the strategies
below (they need Hypothesis), and call the `check_*` functions; each raises AssertionError with what it saw. All take the layer as
`forward(**inputs) -> y, cache` and `backward(dy, cache)`, and its inputs by name in float64.
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
    """Seeds of a NumPy generator: shapes are drawn by Hypothesis, the numbers by NumPy, which is fast and never degenerate."""
    return st.integers(0, 2**32 - 1)


def sizes(most: int = 5) -> st.SearchStrategy[int]:
    """Axis lengths from 1: size-1 axes are where broadcasting hides mistakes."""
    return st.integers(1, most)


def leading(most: int = 2, longest: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of the axes in front of the last one, none included."""
    return st.lists(sizes(longest), min_size=0, max_size=most).map(tuple)


def weights(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Values of size about 1: small ones hide wrong terms behind the tolerance."""
    return random.standard_normal(shape)


def gains(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Multipliers away from 1, 0 and each other."""
    return random.uniform(0.5, 2.0, shape) * random.choice([-1.0, 1.0], shape)


# ---- properties ----


def check_gradients(forward: Callable, backward: Callable, inputs: Inputs, **options: Any) -> None:
    """The contract, and the gradients against finite differences."""
    gradcheck(forward, backward, inputs, **options)


def check_complex_step(forward: Callable, backward: Callable, inputs: Inputs) -> None:
    """The gradients against the complex step: an oracle of another kind, exact to rounding."""
    gradcheck(forward, backward, inputs, method="complex", rtol=1e-11, atol=1e-13)


def check_value(forward: Callable, inputs: Inputs, reference: Callable[..., Any], rtol: float = 1e-12) -> None:
    """The value against an independent reference: loops, or another library."""
    y, _ = forward(**inputs)
    np.testing.assert_allclose(as_tuple(y)[0], reference(**inputs), rtol=rtol, atol=rtol)


def check_read_only(forward: Callable, backward: Callable, inputs: Inputs) -> None:
    """Inputs, dy and gradients that cannot be written are accepted, and give the same bits."""
    y, cache = forward(**inputs)
    dy = _cotangent(y)
    expected = as_tuple(backward(dy, cache))
    frozen = {name: _frozen(a) for name, a in inputs.items()}
    y, cache = forward(**frozen)
    grads = as_tuple(backward(map_arrays(_frozen, dy), cache))
    for a, b in zip(expected, grads, strict=True):
        np.testing.assert_array_equal(a, b)


def check_non_contiguous(forward: Callable, backward: Callable, inputs: Inputs, rtol: float = 1e-12) -> None:
    """Inputs and dy with gaps in memory or reversed strides give the same numbers (to rounding: sums may run in another order)."""
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
    """In float32 the results are float32 and within `ulps` rounding errors of the float64 twin, relative to its largest entry."""
    inputs = {name: _as32(a) for name, a in inputs.items()}  # the twin starts from the same rounded numbers
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
        assert float(np.abs(a - b).max(initial=0.0)) <= bound, f"float32 is {np.abs(a - b).max() / bound:.2g} of the bound away"


def check_float_errors(forward: Callable, backward: Callable, inputs: Inputs) -> None:
    """No overflow, division by zero or invalid operation on ordinary inputs."""
    with np.errstate(all="raise", under="ignore"):
        y, cache = forward(**inputs)
        backward(_cotangent(y), cache)


def check_batch(
    forward: Callable, backward: Callable, inputs: Inputs, batched: Iterable[str], mean: bool = False, rtol: float = 1e-11
) -> None:
    """Rows do not mix: permuting the batch permutes the results, and the gradient of a batch is the sum over its halves.

    batched: names of the inputs whose first axis is the batch. mean: y is a mean over rows, so halves count by their rows.
    """
    batched = set(batched)
    B = next(len(inputs[name]) for name in inputs if name in batched)
    y, cache = forward(**inputs)
    dy = _cotangent(y)
    full = dict(zip(_differentiable(inputs), as_tuple(backward(dy, cache)), strict=True))

    order = np.random.default_rng(1).permutation(B)
    moved = {name: a[order] if name in batched else a for name, a in inputs.items()}
    y2, cache = forward(**moved)
    np.testing.assert_allclose(y2, y if mean else y[order], rtol=rtol, atol=rtol)
    grads = dict(zip(_differentiable(inputs), as_tuple(backward(dy if mean else dy[order], cache)), strict=True))
    for name, g in full.items():
        if g is not None:
            np.testing.assert_allclose(grads[name], g[order] if name in batched else g, rtol=rtol, atol=rtol)

    cut = B // 2
    summed: dict[str, Any] = dict.fromkeys(full, 0.0)
    rows: dict[str, list] = {name: [] for name in full}
    for half in (slice(0, cut), slice(cut, B)):
        n = len(range(B)[half])
        if n == 0:
            continue
        _, cache = forward(**{name: a[half] if name in batched else a for name, a in inputs.items()})
        grads = dict(zip(_differentiable(inputs), as_tuple(backward(dy * n / B if mean else dy[half], cache)), strict=True))
        for name, g in grads.items():
            if g is not None and name in batched:
                rows[name].append(g)
            elif g is not None:
                summed[name] = summed[name] + g
    for name, g in full.items():
        if g is not None:
            np.testing.assert_allclose(np.concatenate(rows[name]) if name in batched else summed[name], g, rtol=rtol, atol=rtol)


def check_empty_batch(forward: Callable, backward: Callable, inputs: Inputs, batched: Iterable[str]) -> None:
    """A batch of no rows gives empty results and, for the shared inputs, zero gradients."""
    batched = set(batched)
    y, cache = forward(**{name: a[:0] if name in batched else a for name, a in inputs.items()})
    assert y.shape[0] == 0
    for name, g in zip(_differentiable(inputs), as_tuple(backward(_cotangent(y), cache)), strict=True):
        if g is not None:
            assert g.shape == (inputs[name][:0] if name in batched else inputs[name]).shape
            assert not g.any()


# ---- helpers ----


def _cotangent(y: Any) -> Any:
    """A random dy: one of ones would hide every error that sums to zero."""
    random = np.random.default_rng(0)
    return map_arrays(lambda a: np.asarray(random.standard_normal(a.shape), dtype=a.dtype), y)


def _is_float(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def _differentiable(inputs: Inputs) -> list[str]:
    """Names of the inputs that backward returns gradients for: float arrays, and None for an absent parameter."""
    return [name for name, a in inputs.items() if a is None or _is_float(a)]


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
