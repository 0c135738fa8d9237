"""How the methods of a layer are called, and where their results are."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tensorlite.arrays import to_numpy
from tensorlite.testing.trees import is_array, is_float_array, map_arrays

OUTPUTS = ("output", "outputs", "out", "y", "Y", "Z", "A", "loss")  # where a forward that returns nothing may leave its result
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Method:
    """A method of a layer by its name, or a function of the caller that takes the layer first."""

    def __init__(self, layer: Any, method: str | Callable, role: str) -> None:
        self.layer = layer
        self.first: tuple = ()
        if not isinstance(method, str):
            self.function, self.first = method, (layer,)
        elif hasattr(layer, method):
            self.function = getattr(layer, method)
        elif role == "forward" and callable(layer):
            self.function = layer
        else:
            public = [name for name in dir(layer) if not name.startswith("_") and callable(getattr(layer, name))]
            text = f"{type(layer).__name__} has no method {method!r}. It has {public}: name one, of_object(..., {role}=...)"
            raise ValueError(text)
        self.parameters = _parameters(self.function)

    @property
    def required(self) -> int:
        """The number of arguments that it requires besides the layer."""
        return sum(p.kind in POSITIONAL and p.default is p.empty for p in self.parameters.values()) - len(self.first)

    @property
    def takes_nothing(self) -> bool:
        """Whether it takes no argument besides the layer."""
        return len(self.parameters) == len(self.first)

    def takes(self, name: str) -> bool:
        """Whether it has a parameter of this name that can be given by keyword, or takes everything by keyword."""
        if name in self.parameters:
            return self.parameters[name].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        others = list(self.parameters.values())[len(self.first) :]
        return bool(others) and all(p.kind is inspect.Parameter.VAR_KEYWORD for p in others)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.function(*self.first, *args, **named)


def call_forward(method: Method, data: Mapping[str, Any]) -> Any:
    """Return what forward returns: inputs whose names it knows are given by name, the others in order."""
    named = {name: value for name, value in data.items() if method.takes(name)}
    return method(*(value for name, value in data.items() if name not in named), **named)


def call_backward(method: Method, dy: Any, cache: tuple) -> Any:
    """Return what backward returns for dy, where backward() without arguments, as of a loss, means dy = 1.

    cache: (cache,) if forward returned one.
    """
    if method.takes_nothing:
        return scaled(method(), dy)
    if method.required > 1 + len(cache):
        signature = inspect.signature(method.function)
        text = (
            f"backward of {type(method.layer).__name__} takes {signature}, and there is dy alone to give it. Say how to call it: "
        )
        raise ValueError(text + "of_object(..., backward=lambda layer, dy: layer.backward(dy, ...))")
    return method(dy, *cache)


def output_of(layer: Any, y: Any) -> Any:
    """Return y, which a forward that returns nothing has left in an attribute."""
    if y is not None:
        return y
    for name in OUTPUTS:
        if getattr(layer, name, None) is not None:
            return getattr(layer, name)
    text = f"forward of {type(layer).__name__} returned None, and its result is in none of the attributes {', '.join(OUTPUTS)}. "
    raise ValueError(text + "Say where it is: of_object(..., forward=lambda layer, x: (layer.forward(x), layer.result)[1])")


def scaled(grads: Any, dy: Any) -> Any:
    """Return the gradients of a loss times dy, which leaves their dtype as it is."""
    factor = float(host(dy).reshape(()))
    return map_arrays(lambda g: g * factor if is_float_array(g) or isinstance(g, float) else g, grads)


def host(a: Any) -> np.ndarray:
    """Return an array or a float as a NumPy array."""
    return to_numpy(a) if is_array(a) else np.asarray(a)


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):  # some functions in C have none
        return {"dy": inspect.Parameter("dy", inspect.Parameter.POSITIONAL_ONLY)}
