"""A JAX function as a (forward, backward) pair: `gradcheck(*from_jax(function), {"x": x, "w": w})`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.testing.adapters.by_name import call_with
from tensorlite.testing.trees import as_tuple

INSTALL = 'from_jax needs JAX: pip install "jax[cpu]"'
SAME_VALUE = 1e-12  # how far the two values of a custom_vjp may be apart, relative to the largest entry, in float64


@dataclass
class Call:
    """One call of the function."""

    inputs: dict[str, Any]
    y: list[np.ndarray]  # the float leaves of the output


def from_jax(function: Callable) -> tuple[Callable[..., tuple[Any, Call]], Callable[[Any, Call], tuple]]:
    """Return (forward, backward) over NumPy arrays for a function that JAX differentiates, with or without a `custom_vjp`.

    function: takes arrays, pytrees of arrays, and options. Its float arrays are differentiated. Options are passed on as they are,
      so they may be static. Values of 64 bits are enabled during its calls.

    forward(**inputs) passes the inputs by name where the function has parameters of these names, otherwise in their order.
      Returns y and the call as the cache. y is an array, or a tuple of the float leaves of the output.
    backward(dy, cache) calls `jax.vjp` and returns one gradient per input that holds a float array.

    Raises ImportError without JAX; ValueError when no output is a float array, when the function hands a traced value to NumPy, or
    when the forward rule of a custom_vjp returns another value than the function.
    """
    try:
        import jax
    except ImportError as missing:
        raise ImportError(INSTALL) from missing

    def is_float(leaf: Any) -> bool:
        return isinstance(leaf, np.ndarray | np.generic | jax.Array) and bool(jax.numpy.issubdtype(leaf.dtype, np.inexact))

    def float_leaves(output: Any) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(output) if is_float(leaf)]

    def forward(**inputs: Any) -> tuple[Any, Call]:
        with _x64(jax):
            output = call_with(function, {name: jax.tree.map(_to_jax(jax), value) for name, value in inputs.items()})
            y = [np.array(leaf) for leaf in float_leaves(output)]
        if not y:
            raise ValueError("no output of the function is a float array, so it has no gradient")
        return y[0] if is_float(output) else tuple(y), Call(inputs, y)

    def backward(dy: Any, cache: Call) -> tuple:
        names = list(cache.inputs)
        leaves, structure = jax.tree.flatten(list(cache.inputs.values()))  # a list, because a dict would be sorted by its keys
        at = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

        def of_floats(*floats: Any) -> list[Any]:
            merged = [_to_jax(jax)(leaf) for leaf in leaves]
            for i, a in zip(at, floats, strict=True):
                merged[i] = a
            return float_leaves(call_with(function, dict(zip(names, structure.unflatten(merged), strict=True))))

        with _x64(jax):
            try:
                y, pull = jax.vjp(of_floats, *(jax.numpy.asarray(leaves[i]) for i in at))
            except jax.errors.TracerArrayConversionError as error:
                raise ValueError(f"the function hands a traced value to NumPy; use jax.numpy instead ({error})") from error
            _require_same_value(cache.y, y)
            found = pull([jax.numpy.asarray(dyi, yi.dtype) for dyi, yi in zip(as_tuple(dy), y, strict=True)])
            gradients: list[Any] = [None] * len(leaves)
            for i, g in zip(at, found, strict=True):
                gradients[i] = np.array(g)
        trees = zip(structure.unflatten(gradients), cache.inputs.values(), strict=True)
        return tuple(g for g, value in trees if float_leaves(value))

    return forward, backward


def _x64(jax: Any) -> Any:
    """Return a context in which JAX has 64-bit values. Older versions have it in jax.experimental."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def _to_jax(jax: Any) -> Callable[[Any], Any]:
    """Return the function that turns a NumPy array into one of JAX, and leaves everything else as it is."""
    return lambda leaf: jax.numpy.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _require_same_value(expected: list[np.ndarray], found: list[Any]) -> None:
    """Raise ValueError if a custom_vjp's forward rule, which `jax.vjp` calls, returns another value than the function."""
    for a, b in zip(expected, found, strict=True):
        tolerance = SAME_VALUE if a.dtype.itemsize >= 8 else 0.1  # a low precision has its own check
        a, b = a.astype(np.complex128), np.asarray(b).astype(np.complex128)
        if not np.allclose(a, b, rtol=0.0, atol=tolerance * max(1.0, float(np.abs(a).max(initial=0.0))), equal_nan=True):
            raise ValueError("the forward rule of the custom_vjp returns another value than the function itself")
