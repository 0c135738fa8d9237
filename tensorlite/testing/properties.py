"""Properties that every hand-derived layer should have, as functions to call from a test suite.

Finite differences alone cannot prove a layer right: the backward of a wrong forward passes them. Draw inputs with the strategies
below, which alone need Hypothesis, and call the `check_*` functions, which raise AssertionError if the property does not hold. Each
takes the layer as `forward(**inputs) -> y, cache` and `backward(dy, cache)`, and its inputs by name in float64.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorlite.arrays import Array
from tensorlite.testing.gradcheck import gradcheck
from tensorlite.testing.layer import Layer
from tensorlite.testing.returned import read_gradients
from tensorlite.testing.trees import as_tuple, flatten, is_array, map_arrays

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Inputs = Mapping[str, Any]
EPS32 = float(np.finfo(np.float32).eps)


class InexactFloat32Error(AssertionError):
    """A float32 result is far from the float64 one, as it may be where the layer is ill-conditioned or has a kink."""


# ---- strategies ----


def seeds() -> "SearchStrategy[int]":
    """Seeds of a NumPy generator. Hypothesis draws the shapes; NumPy draws the values, fast and never degenerate."""
    from hypothesis import strategies as st

    return st.integers(0, 2**32 - 1)


def sizes(most: int = 5) -> "SearchStrategy[int]":
    """Axis lengths from 1 on, since broadcasting hides mistakes where an axis has length 1."""
    from hypothesis import strategies as st

    return st.integers(1, most)


def leading(most: int = 2, longest: int = 4) -> "SearchStrategy[tuple[int, ...]]":
    """Shapes of the axes in front of the last one, of which there may be none."""
    from hypothesis import strategies as st

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
    """Read-only inputs and dy are accepted and give equal results."""
    expected = _results(forward, backward, inputs)
    found = _results(forward, backward, _mapped(_frozen, inputs), dy_as=_frozen)
    for name, a, b in _pairs(expected, found):
        np.testing.assert_array_equal(b, a, err_msg=name)


def check_non_contiguous(forward: Callable, backward: Callable, inputs: Inputs, rtol: float = 1e-12) -> None:
    """Any order of inputs and dy in memory gives the same values, up to the rounding of another summation order.

    The orders are gaps between the entries, negative strides, and that of Fortran, which the transpose of an array has.
    """
    expected = _results(forward, backward, inputs)
    for laid_out in (_with_gaps, _reversed, _in_fortran_order):
        found = _results(forward, backward, _mapped(laid_out, inputs), dy_as=laid_out)
        for name, a, b in _pairs(expected, found):
            _assert_close(b, a, rtol, name)


def check_float32(forward: Callable, backward: Callable, inputs: Inputs, ulps: float = 64, per_rounding: float = 0) -> None:
    """With float32 inputs, results are float32 and close to those of the same values in float64.

    ulps: the allowed difference, in units of the float32 epsilon times the largest entry of the float64 result (or 1).
    per_rounding: what is allowed besides, in units of how much a result changes when the inputs are rounded to float32. It
      allows for inputs at which the layer is ill-conditioned, such as a layernorm over two nearly equal values.

    A Python float, as a loss may be one, has no precision: only its value counts.
    """
    inputs = _mapped(_as32, inputs)  # float64 starts from the same rounded values
    exact_inputs = _mapped(_as64, inputs)
    exact = _results(forward, backward, exact_inputs, dy_as=_rounded)
    found = _results(forward, backward, inputs, dy_as=_as32)
    changed = (
        [_results(forward, backward, _nudged(exact_inputs, seed), dy_as=_rounded) for seed in range(3)] if per_rounding else []
    )
    for i, (name, a, b) in enumerate(_pairs(exact, found)):
        assert found.is_python_float[i] or b.dtype == np.float32, f"{name}: float32 in, {b.dtype} out"
        change = max((_largest(a - other.arrays[i]) for other in changed), default=0.0)
        bound = ulps * EPS32 * max(1.0, _largest(a)) + per_rounding * change
        error = _largest(a - b)
        if not error <= bound:
            raise InexactFloat32Error(f"{name}: the float32 error is {error / bound:.2g} times its bound")


def check_float_errors(forward: Callable, backward: Callable, inputs: Inputs) -> None:
    """No overflow, division by zero or invalid operation occurs on ordinary inputs."""
    with np.errstate(all="raise", under="ignore"):
        _results(forward, backward, inputs)


def check_batch(
    forward: Callable,
    backward: Callable,
    inputs: Inputs,
    batched: Iterable[str] | Mapping[str, int],
    mean: bool = False,
    rtol: float = 1e-11,
) -> None:
    """Rows do not mix: permuting the batch permutes the results, and the results of a batch are those of its two halves.

    batched: names of the inputs whose first axis is the batch, or the number of the batch axis by name.
    mean: y is a mean over rows, so a half counts in proportion to its rows.

    Results with a batch axis are found by doubling the batch. Those of the halves stand side by side. Gradients of shared inputs
    are the sum of the halves.
    """
    batch = _Batch.of(forward, backward, inputs, batched)
    for name, axis in zip(batch.whole.names, batch.axes, strict=True):
        if axis is None and name.startswith("y"):
            assert mean, f"{name} has no batch axis: a loss that is a mean over the rows needs mean=True"
    _check_permuted_batch(batch, rtol)
    _check_halves_of_batch(batch, rtol)


def _check_permuted_batch(batch: "_Batch", rtol: float) -> None:
    order = np.random.default_rng(1).permutation(batch.rows)
    permuted = batch.part(order)
    for (name, a, b), axis in zip(_pairs(batch.whole, permuted), batch.axes, strict=True):
        _assert_close(b, _taken(a, order, axis), rtol, f"{name} with the rows in another order")


def _check_halves_of_batch(batch: "_Batch", rtol: float) -> None:
    indices = np.arange(batch.rows)
    halves = [half for half in np.split(indices, [batch.rows // 2]) if len(half)]
    results = [batch.part(half) for half in halves]
    shares = [len(half) / batch.rows for half in halves]
    for i, (name, axis) in enumerate(zip(batch.whole.names, batch.axes, strict=True)):
        parts = [result.arrays[i] for result in results]
        if axis is not None:
            found = np.concatenate(parts, axis=axis)
        elif name.startswith("y"):  # a mean over rows
            found = sum(part * share for part, share in zip(parts, shares, strict=True))
        else:
            found = sum(parts)
        _assert_close(found, batch.whole.arrays[i], rtol, f"{name} from the two halves of the batch")


def check_empty_batch(forward: Callable, backward: Callable, inputs: Inputs, batched: Iterable[str] | Mapping[str, int]) -> None:
    """A batch without rows gives empty results and, for the shared inputs, zero gradients."""
    batch = _Batch.of(forward, backward, inputs, batched)
    none = np.arange(0)
    for (name, a, b), axis in zip(_pairs(batch.whole, batch.part(none)), batch.axes, strict=True):
        expected = _taken(a, none, axis).shape
        assert b.shape == expected, f"{name} of an empty batch is of shape {b.shape} instead of {expected}"
        assert not np.isnan(b).any(), f"{name} of an empty batch is NaN"
        assert not b.any(), f"{name} of an empty batch is not 0"


def check_leading(
    forward: Callable, backward: Callable, inputs: Inputs, leading: Mapping[str, int], n_axes: int, rtol: float = 1e-11
) -> None:
    """Leading axes are only a shape: with all of them in one axis the results hold the same values.

    leading: the number of the first leading axis, by name of the inputs that have leading axes.
    n_axes: how many leading axes there are; with none the inputs get one of length 1.
    """

    def flat(name: str, a: Any) -> Any:
        if name not in leading:
            return a
        first = leading[name]
        n = math.prod(a.shape[first : first + n_axes])
        return a.reshape(*a.shape[:first], n, *a.shape[first + n_axes :])

    expected = _results(forward, backward, inputs)
    flat_inputs = {name: flat(name, a) for name, a in inputs.items()}
    flat_y, _ = forward(**flat_inputs)
    dy = iter(expected.dy)
    found = _results(forward, backward, flat_inputs, dy=map_arrays(lambda a: next(dy).reshape(np.shape(a)), flat_y))
    for name, a, b in _pairs(expected, found):
        assert a.size == b.size, f"{name} is of shape {a.shape}, and {b.shape} with all leading axes in one"
        _assert_close(b.reshape(a.shape), a, rtol, f"{name} with all leading axes in one")


# ---- helpers ----


@dataclass(frozen=True)
class _Results:
    """The arrays that one forward and backward returned: outputs first, then gradients, without those that are None."""

    names: list[str]
    arrays: list[Array]
    is_python_float: list[bool]  # of each result, before it became an array
    dy: list[Array]


def _results(
    forward: Callable, backward: Callable, inputs: Inputs, dy: Any = None, dy_as: Callable[[Any], Any] = lambda a: a
) -> _Results:
    """Call forward and backward; return copies of what they return, because a layer may reuse its memory.

    dy: the gradient of y, by default a random one.
    dy_as: what to do to each array of dy.
    """
    y, cache = forward(**inputs)
    outputs = _leaves(y)
    arrays = [np.array(a) for a in outputs]
    y = map_arrays(np.asarray, y)  # a loss may be a Python float
    dy = map_arrays(dy_as, _cotangent(y) if dy is None else dy)
    returned = backward(dy, cache)
    gradients = _leaves(returned)
    arrays += [np.array(g) for g in gradients]
    names = ["y" if len(outputs) == 1 else f"y[{i}]" for i in range(len(outputs))]
    names += _names_of_gradients(gradients, returned, Layer(forward, backward, dict(inputs)))
    return _Results(names, arrays, [not is_array(a) for a in outputs + gradients], _leaves(dy))


def _leaves(tree: Any) -> list[Any]:
    """Return the parts of one result or of several, which may nest tuples, lists and dicts. None has no place among them."""
    return [leaf for leaf in flatten(tree).values() if leaf is not None]


def _names_of_gradients(gradients: list[Any], returned: Any, layer: Layer) -> list[str]:
    """Return the name of each gradient: dw if it can be told whose it is."""
    paths: dict[int, list[str]] = {}
    for path, g in read_gradients(returned, layer).by_path.items():
        paths.setdefault(id(g), []).append(f"d{path}")
    return [" and ".join(paths.get(id(g), [f"gradient {i} of {len(gradients)}"])) for i, g in enumerate(gradients, start=1)]


def _pairs(expected: _Results, found: _Results) -> list[tuple[str, Array, Array]]:
    """Return the name of each result, what is expected and what was found."""
    assert len(expected.arrays) == len(found.arrays), f"{len(expected.arrays)} results, then {len(found.arrays)}"
    return list(zip(expected.names, expected.arrays, found.arrays, strict=True))


@dataclass(frozen=True)
class _Batch:
    """A layer on a batch, and which axis of each result is the batch axis (None: the result is shared by all rows)."""

    forward: Callable
    backward: Callable
    inputs: Inputs
    batched: Mapping[str, int]
    whole: _Results
    axes: list[int | None]

    @classmethod
    def of(cls, forward: Callable, backward: Callable, inputs: Inputs, batched: Iterable[str] | Mapping[str, int]) -> "_Batch":
        if not isinstance(batched, Mapping):
            batched = dict.fromkeys(batched, 0)
        whole = _results(forward, backward, inputs)
        twice = _results(forward, backward, {n: _twice(a, batched[n]) if n in batched else a for n, a in inputs.items()})
        axes = [_axis_that_doubled(name, a, b) for name, a, b in _pairs(whole, twice)]
        return cls(forward, backward, inputs, batched, whole, axes)

    @property
    def rows(self) -> int:
        return next(self.inputs[name].shape[axis] for name, axis in self.batched.items())

    def part(self, rows: np.ndarray) -> _Results:
        """Return the results on some of the rows. A dy without a batch axis is that of a mean and counts in proportion."""
        inputs = {name: _taken(a, rows, self.batched.get(name)) for name, a in self.inputs.items()}
        share = len(rows) / self.rows
        dys = iter(zip(self.whole.dy, self.axes, strict=False))

        def next_dy(a: Array) -> Array:
            dy, axis = next(dys)
            return np.asarray(dy * share if axis is None else _taken(dy, rows, axis), dtype=a.dtype)

        y, _ = self.forward(**inputs)
        return _results(self.forward, self.backward, inputs, dy=map_arrays(next_dy, map_arrays(np.asarray, y)))


def _twice(a: Array, axis: int) -> Array:
    return np.concatenate([a, a], axis=axis)


def _taken(a: Any, rows: np.ndarray, axis: int | None) -> Any:
    """Return some rows of an array with a batch axis, and anything else as it is."""
    return a if axis is None else np.take(a, rows, axis=axis)


def _axis_that_doubled(name: str, a: Array, twice: Array) -> int | None:
    """Return the axis that is longer when the batch is twice as long."""
    longer = [axis for axis, (n, m) in enumerate(zip(a.shape, twice.shape, strict=True)) if n != m]
    assert len(longer) <= 1, f"{name} is of shape {a.shape}, and {twice.shape} for a batch of twice the rows"
    return longer[0] if longer else None


def _cotangent(y: Any) -> Any:
    """Return a random dy. A dy of ones would hide every error that sums to zero."""
    random = np.random.default_rng(0)
    return map_arrays(lambda a: np.asarray(random.standard_normal(a.shape), dtype=a.dtype), y)


def _assert_close(found: Array, expected: Array, rtol: float, name: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * max(1.0, _largest(expected)), err_msg=name)


def _largest(a: Array) -> float:
    return float(np.abs(a).max(initial=0.0))


def _is_float(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def _nudged(inputs: Inputs, seed: int) -> dict[str, Any]:
    """Change every float by up to the rounding error of float32."""
    random = np.random.default_rng(seed)
    return _mapped(lambda a: a * (1 + EPS32 / 2 * random.uniform(-1, 1, a.shape)) if _is_float(a) else a, inputs)


def _mapped(f: Callable[[Any], Any], inputs: Inputs) -> dict[str, Any]:
    """Return the inputs with f applied to each leaf."""
    return {name: map_arrays(f, tree) for name, tree in inputs.items()}


def _frozen(a: Any) -> Any:
    if isinstance(a, np.ndarray):
        a = a.copy()
        a.flags.writeable = False
    return a


def _as32(a: Any) -> Any:
    return a.astype(np.float32) if _is_float(a) else a


def _as64(a: Any) -> Any:
    return a.astype(np.float64) if _is_float(a) else a


def _rounded(a: Any) -> Any:
    return _as64(_as32(a))


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


def _in_fortran_order(a: Any) -> Array:
    return np.asfortranarray(a) if isinstance(a, np.ndarray) and a.ndim else a
