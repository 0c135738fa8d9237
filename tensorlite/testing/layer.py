"""The layer that a gradient check is about, and how its two functions are called."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tensorlite.arrays import array_namespace, to_numpy
from tensorlite.testing.trees import children, flatten, flatten_inputs, is_array, is_float_array, map_arrays, map_with_path

AS_ARRAY = "A Python float has no gradient that can be checked: make it an array without axes, np.asarray(0.25)"
PAIR = "forward must return a pair: `return y, cache`, where the cache may be None"


@dataclass
class Layer:
    """A forward and a backward, and the inputs at which they are checked.

    An input is an array, anything else that forward takes (an integer, a string, None), or a tree of them.
    """

    forward: Callable[..., tuple[Any, Any]]  # forward(**inputs) -> (y, cache)
    backward: Callable[[Any, Any], Any]  # backward(dy, cache) -> gradients
    inputs: dict[str, Any]  # by name; their order is that of the gradients
    wrt: Sequence[str] | None = None  # names of inputs, or paths inside them, to check; None: every float array

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """The leaves of all inputs, by path."""
        return flatten_inputs(self.inputs)

    @cached_property
    def checked(self) -> list[str]:
        """Paths of the arrays whose gradients are checked; backward owes no gradient to any other input."""
        floats = [path for path, leaf in self.leaves.items() if is_float_array(leaf)]
        if self.wrt is None:
            return floats
        if isinstance(self.wrt, str):
            raise ValueError(f"wrt is a list of names: [{self.wrt!r}]")
        if not self.wrt:
            raise ValueError("wrt names no argument, so nothing would be checked")
        chosen: set[str] = set()
        for name in self.wrt:
            address = name.replace("'", '"')
            below = [path for path in floats if path == address or path.startswith((f"{address}[", f"{address}."))]
            if not below:
                way_out = f". {AS_ARRAY}" if isinstance(self.leaves.get(address), float) else ""
                raise ValueError(f"wrt names {name!r}, which is no float array among the inputs {floats}{way_out}")
            chosen.update(below)
        return [path for path in floats if path in chosen]

    def inputs_with(self, leaves: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs with the leaves at some paths replaced."""
        return {name: map_with_path(lambda path, leaf: leaves.get(path, leaf), tree, name) for name, tree in self.inputs.items()}

    def phi(self, dy: Any, directions: dict[str, Any]) -> Callable[[complex], complex]:
        """Return t -> sum(dy * forward(x + t u)), with a direction u for some arrays x. Only scalars leave the device."""

        def phi(t: complex) -> complex:
            moved = {path: self.leaves[path] + t * u for path, u in directions.items()}
            y, _ = self.call_forward(self.inputs_with(moved))
            outputs = zip(flatten(dy).values(), flatten(y).values(), strict=True)
            return sum((_inner_product(dy, y) for dy, y in outputs), 0j)

        return phi

    def call_forward(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Return y and the cache. Raises ValueError, which says what to write, if forward returns no such pair."""
        try:
            returned = self.forward(**inputs)
        except TypeError:
            require_call(self.forward, f"forward(**inputs), with the inputs {list(inputs)}", (), inputs)
            raise
        if returned is None:
            raise ValueError(f"forward returned None. Is its return statement missing? {PAIR}")
        if not isinstance(returned, tuple | list):
            raise ValueError(f"forward returned {describe(returned)} alone. {PAIR}")
        if len(returned) != 2:
            raise ValueError(f"forward returned {len(returned)} values, {describe(returned)}. {PAIR} or a tuple")
        return returned[0], returned[1]

    def call_backward(self, dy: Any, cache: Any) -> Any:
        """Return copies of the gradients: backward may use their memory again."""
        try:
            returned = self.backward(dy, cache)
        except TypeError:
            require_call(self.backward, "backward(dy, cache)", (dy, cache), {})
            raise
        return map_arrays(_gradient_leaf, returned)


def describe(value: Any) -> str:
    """Say what a value is: "an array (3, 4) float64", "a tuple (an array (3,) float64, None)", "a str"."""
    if value is None:
        return "None"
    if is_array(value):
        return f"an array {value.shape} {value.dtype}"
    kind = f"an {type(value).__name__}" if type(value).__name__[0] in "aeiouAEIOU" else f"a {type(value).__name__}"
    parts = children(value)
    if parts is None:
        return kind
    if isinstance(value, dict):
        inside = ", ".join(f"{key!r}: {describe(part)}" for key, part in list(value.items())[:6])
    else:
        inside = ", ".join(describe(part) for part in list(parts.values())[:6])
    return f"{kind} ({inside}{', ...' if len(parts) > 6 else ''})"


def random_like(random: np.random.Generator, y: Any) -> Any:
    """Return normal float64 values in the structure, shapes and library of y."""

    def normal(a: Any) -> Any:
        if not is_array(a):
            return float(random.standard_normal())
        return array_namespace(a).asarray(random.standard_normal(a.shape))

    return map_arrays(normal, y)


def _inner_product(dy: Any, y: Any) -> complex:
    product = dy * y
    return complex(to_numpy(product.sum())) if is_array(product) else complex(product)


def _gradient_leaf(g: Any) -> Any:
    if is_array(g):
        return g.copy()
    return np.asarray(g) if isinstance(g, float) else g  # the gradient of an input without axes may be a Python float


def require_call(function: Callable, call: str, args: tuple, inputs: dict[str, Any]) -> None:
    """Raise ValueError if the signature of the function is the reason why `call` failed."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some functions in C have none
        return
    try:
        signature.bind(*args, **inputs)
    except TypeError as error:
        name = call.partition("(")[0]
        raise ValueError(f"the call is {call}, but {name} takes {signature}: {error}") from None
