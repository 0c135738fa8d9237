"""Calls of an object's forward and backward, each on a copy of the object that holds given parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.testing.adapters.calls import POSITIONAL, Method, call_backward, call_forward, output_of
from tensorlite.testing.adapters.object_state import copy_with, float_arrays


@dataclass
class Run:
    """A copy of the object after its forward."""

    layer: Any
    data: dict[str, Any]  # the inputs of forward
    parameters: dict[str, Array]
    y: Any
    cache: tuple  # (cache,) if forward returned one


@dataclass
class Runner:
    """How to call the object. The object itself does not change."""

    source: Any  # the object, or a class or function that returns one
    forward_name: str | Callable
    backward_name: str | Callable

    def new(self) -> Any:
        """Return the object, which may not be changed, or a new one."""
        if not inspect.isclass(self.source) and not inspect.isroutine(self.source):
            return self.source
        signature = inspect.signature(self.source)
        if any(p.default is p.empty and p.kind in POSITIONAL for p in signature.parameters.values()):
            text = f"of_object takes an object, or a class or function that returns one without arguments. {self.source.__name__} "
            raise ValueError(f"{text}takes {signature}; is it a function for of_loss?")
        return self.source()

    def forward_method(self, layer: Any) -> Method:
        """Return the forward of a copy."""
        return Method(layer, self.forward_name, "forward")

    def backward_method(self, layer: Any) -> Method:
        """Return the backward of a copy."""
        return Method(layer, self.backward_name, "backward")

    def forward(self, data: dict[str, Any], parameters: dict[str, Array], in_float64: bool, from_zero: dict[str, Any]) -> Run:
        """Call forward of a new copy.

        parameters: arrays to put in the places of the copy's own.
        in_float64: whether to convert the other float arrays of the copy.
        from_zero: places of gradients, which start from zero, and the array that each is the gradient of, if that is known. It
            gives the dtype.
        """
        source = self.new()
        held = float_arrays(source)
        start = {name: a.astype(np.float64) for name, a in held.items() if in_float64 and a.dtype != np.float64}
        for place, of in from_zero.items():
            if place in held:
                own = start.get(place, held[place])
                start[place] = array_namespace(own).zeros_like(own, dtype=own.dtype if of is None else of.dtype)
        layer = copy_with(source, start | parameters)
        y = call_forward(self.forward_method(layer), data)
        cache: tuple = ()
        if isinstance(y, tuple) and len(y) == 2 and self.backward_method(layer).required == 2:
            y, cache = y[0], (y[1],)
        return Run(layer, data, parameters, output_of(layer, y), cache)

    def backward(self, run: Run, dy: Any) -> Any:
        """Return what backward of the object returns."""
        return call_backward(self.backward_method(run.layer), dy, run.cache)
