"""Layers that are objects with state, as pairs of functions.

gradcheck(*of_object(Linear(4, 3)), {"x": x})
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorlite.arrays import Array, array_namespace
from tensorlite.testing.adapters.calls import POSITIONAL, Method, call_backward, call_forward, host, output_of
from tensorlite.testing.adapters.gradient_names import find_gradient, what_was_sought
from tensorlite.testing.adapters.object_state import copy_with, float_arrays
from tensorlite.testing.returned import Absent
from tensorlite.testing.trees import children, flatten, flatten_inputs, is_array, is_float_array, map_arrays

Pair = tuple[Callable[..., tuple[Any, Any]], Callable[[Any, Any], Any]]


def of_object(
    layer: Any,
    *,
    forward: str | Callable = "forward",
    backward: str | Callable = "backward",
    parameters: Sequence[str] | None = None,
    gradients: Mapping[str, str] | None = None,
    reset: bool = True,
    seed: int = 0,
) -> Pair:
    """Return forward and backward of a layer that is an object, for gradcheck, with its parameters as further inputs.

    The inputs given to gradcheck are those of the layer's forward. The parameters are added to them: the float arrays in the
    attributes of the object, and of objects in it, for which a gradient is found after backward. They are named as they are
    addressed, `W`, `params["W"]` or `layers[0].W`, and a value given to gradcheck under that name replaces the object's own.
    Gradients are taken from what backward returns and from attributes such as `dW`, `grad_W`, `W_grad`, `grads["W"]` and `W.grad`.

    Each call works on a new copy of the object, in which gradients start from zero, so a layer may add them up from call to call.
    The object itself does not change.

    layer: the object, or a function or class without arguments that returns a new one.
    forward: name of the method, or a function `f(layer, *inputs)` that returns y. If it returns None, y is looked for in attributes
      such as `output`. A pair `(y, cache)` is understood where backward takes `(dy, cache)`.
    backward: name of the method, or a function `f(layer, dy)`, or `f(layer, dy, cache)`. A method without arguments, as of a loss,
      returns the gradient for dy = 1.
    parameters: names of the parameters, if not every array with a gradient is meant.
    gradients: where to find gradients with unusual names, by the name of the input: {"W": "nabla[0]", "x": "error"}.
    reset: False to call backward repeatedly on one object. Then a layer that adds its gradients up is named as such.
    seed: of the values for parameters that are all 0 or all 1, where mistakes would not show.

    Float32 parameters are checked in float64 if the inputs are. Raises ValueError if y depends on an array of the object whose
    gradient is not found, and says how to name it.
    """
    adapter = _Object(layer, forward, backward, parameters, dict(gradients or {}), reset, seed)
    return adapter, adapter.backward


@dataclass
class _Run:
    """A copy of the object after its forward."""

    layer: Any
    inputs: dict[str, Any]  # those of forward and the parameters
    y: Any
    cache: tuple  # (cache,) if forward returned one


@dataclass
class _Object:
    """The forward of an object: `self(**inputs)` returns y and the run that computed it."""

    source: Any
    forward_name: str | Callable
    backward_name: str | Callable
    chosen: Sequence[str] | None  # names of the parameters, if the caller chose them
    places: dict[str, str]  # where the gradient of an input is, by the input's name
    reset: bool
    seed: int
    parameters: list[str] = field(default_factory=list)
    in_float64: bool = False  # whether float32 arrays of the object are converted

    def __call__(self, **inputs: Any) -> tuple[Any, Any]:
        run = self.run(inputs)
        return run.y, run

    def backward(self, dy: Any, run: _Run) -> Any:
        """Return the gradients for dy, by the names of the inputs where the object has parameters."""
        if self.reset:
            run = self.run(run.inputs)
        returned = self.run_backward(run, dy)
        if not self.parameters and not self.places and returned is not None:
            return returned
        return self.of_data(run, returned) | self.of_parameters(run, returned)

    # ---- calls ----

    def new(self) -> Any:
        """Return the object, which may not be changed, or a new one."""
        if not inspect.isclass(self.source) and not inspect.isroutine(self.source):
            return self.source
        if any(p.default is p.empty and p.kind in POSITIONAL for p in inspect.signature(self.source).parameters.values()):
            text = f"of_object takes an object, or a class or function that returns one without arguments. {self.source.__name__} "
            raise ValueError(text + f"takes {inspect.signature(self.source)}; is it a function for of_loss?")
        return self.source()

    def run(self, inputs: dict[str, Any]) -> _Run:
        """Call forward of a copy of the object that holds the given parameters."""
        source = self.new()
        start = self.start_values(float_arrays(source))
        layer = copy_with(source, start | {name: inputs[name] for name in self.parameters})
        y = call_forward(Method(layer, self.forward_name, "forward"), self.data(inputs))
        cache: tuple = ()
        if isinstance(y, tuple) and len(y) == 2 and Method(layer, self.backward_name, "backward").required == 2:
            y, cache = y[0], (y[1],)
        return _Run(layer, inputs, output_of(layer, y), cache)

    def start_values(self, held: dict[str, Array]) -> dict[str, Array]:
        """Return what replaces arrays of the object in a copy: float64 for float32, and zeros for gradients of earlier calls."""
        start = {name: a.astype(np.float64) for name, a in held.items() if self.in_float64 and a.dtype != np.float64}
        for place in self.places.values():
            if place in held and self.reset:
                start[place] = array_namespace(held[place]).zeros_like(start.get(place, held[place]))
        return start

    def run_backward(self, run: _Run, dy: Any) -> Any:
        """Return what backward of the object returns."""
        return call_backward(Method(run.layer, self.backward_name, "backward"), dy, run.cache)

    def data(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of forward, without the parameters."""
        return {name: value for name, value in inputs.items() if name not in self.parameters}

    # ---- gradients ----

    def of_data(self, run: _Run, returned: Any) -> dict[str, Any]:
        """Return the gradients of the inputs of forward: as returned by name or in order, otherwise from attributes."""
        data = self.data(run.inputs)
        names = _with_floats(data)
        if isinstance(returned, Mapping):
            found = {name: returned[key] for name in names for key in (name, f"d{name}") if key in returned}
        elif len(names) == 1 and children(data[names[0]]) is not None:
            found = {names[0]: returned}
        else:
            in_order = returned if isinstance(returned, tuple | list) else (returned,)
            found = {name: g for name, g in zip(names, in_order, strict=False) if g is not None}
        arrays = float_arrays(run.layer)
        for name in names:
            if name in self.places or (name not in found and is_float_array(data[name])):
                place = self.places.get(name) or find_gradient(name, data[name], arrays, is_input=len(names) == 1)
                found[name] = self.at(place, arrays, name, run.layer)
        return found

    def of_parameters(self, run: _Run, returned: Any) -> dict[str, Any]:
        """Return the gradients of the parameters, from the places where they were found at first."""
        arrays = float_arrays(run.layer) | self.returned_arrays(run, returned)
        return {name: self.at(self.places.get(name), arrays, name, run.layer) for name in self.parameters}

    def at(self, place: str | None, arrays: Mapping[str, Array], name: str, layer: Any) -> Any:
        """Return the gradient at a place, or what says that it is not there."""
        if place is not None and place in arrays:
            return arrays[place]
        where = f"at {place}" if place else f"under names such as {what_was_sought(name)}"
        return Absent(f"backward did not return it, and {type(layer).__name__} has none {where}")

    def returned_arrays(self, run: _Run, returned: Any) -> dict[str, Array]:
        """Return the arrays that backward returned, but for those of the inputs of forward, as if the object had kept them."""
        if isinstance(returned, Mapping):
            return {path: g for path, g in flatten(returned, "grads").items() if is_float_array(g)}
        if not isinstance(returned, tuple | list):
            return {}
        surplus = flatten(list(returned[len(_with_floats(self.data(run.inputs))) :]))
        return {f"returned[{i}]": g for i, g in enumerate(surplus.values()) if is_float_array(g)}

    # ---- parameters ----

    def with_parameters(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of forward and, behind them, the parameters of the object."""
        layer = self.new()
        held = float_arrays(layer)
        for name in self.chosen or ():
            if name not in held:
                raise ValueError(f"{type(layer).__name__} has no float array {name!r}. It has {list(held)}")
        method = Method(layer, self.forward_name, "forward")
        given = [name for name in inputs if name in held and not method.takes(name)]
        while given and len(inputs) - len(given) < method.required:  # the object holds an input under that name too
            given.pop(0)
        data = {name: value for name, value in inputs.items() if name not in given}
        floats = [leaf for leaf in flatten_inputs(data).values() if is_float_array(leaf)]
        self.in_float64 = not floats or any(leaf.dtype == np.float64 for leaf in floats)
        self.parameters = []
        self.parameters = self.find_parameters(held, data)
        random = np.random.default_rng(self.seed)
        own = {name: _moved(held[name].astype(np.float64) if self.in_float64 else held[name], random) for name in self.parameters}
        return data | own | {name: inputs[name] for name in given if name in own}

    def find_parameters(self, held: dict[str, Array], data: dict[str, Any]) -> list[str]:
        """Return the names of the arrays of the object that are parameters, and remember where their gradients are."""
        run = self.run(data)
        random = np.random.default_rng(self.seed)
        dy = map_arrays(lambda a: array_namespace(a).asarray(random.standard_normal(a.shape)) if is_array(a) else 1.0, run.y)
        returned = self.run_backward(run, dy)
        arrays = float_arrays(run.layer)
        extra = self.returned_arrays(run, returned)
        if not held:
            self.refuse_late_parameters(run.layer, arrays)

        found, without_gradient = [], []
        for name, aliases in _aliases(held).items():
            if name in data or (self.chosen is not None and not set(aliases) & set(self.chosen)):
                continue
            places = [self.places.get(alias) for alias in aliases]
            places += [find_gradient(alias, held[name], arrays | extra) for alias in aliases]
            place = next((place for place in places if place), None)
            is_used, is_overwritten = self.use_of(name, held[name], run)
            if place and (is_used or not is_overwritten):
                self.places[name] = place
                found.append(name)
            elif is_used or self.chosen is not None:
                without_gradient.append(name)
        if [held[name].shape for name in without_gradient] == [g.shape for g in extra.values()]:  # (dx, dW, db), without names
            self.places |= dict(zip(without_gradient, extra, strict=True))
        elif without_gradient and self.chosen is None:
            self.refuse_unknown_gradient(run.layer, without_gradient[0], found)
        found += without_gradient
        return list(self.chosen) if self.chosen is not None else [name for name in held if name in found]

    def use_of(self, name: str, a: Array, run: _Run) -> tuple[bool, bool]:
        """Return whether another value of an array of the object gives another y, and whether forward replaces the array."""
        value = a.astype(np.float64) * 1.25 + 0.25 if self.in_float64 else a * 1.25 + 0.25
        self.parameters = [name]
        try:
            moved = self.run(run.inputs | {name: value})
        finally:
            self.parameters = []
        outputs = zip(flatten(run.y).values(), flatten(moved.y).values(), strict=False)
        is_used = any(bool((host(y) != host(z)).any()) for y, z in outputs)
        return is_used, float_arrays(moved.layer).get(name) is not value

    def refuse_late_parameters(self, layer: Any, arrays: dict[str, Array]) -> None:
        late = [name for name, a in arrays.items() if find_gradient(name, a, arrays)]
        if late:
            text = f"{type(layer).__name__} creates {late} in its first forward. Give of_object a layer that has them already"
            raise ValueError(f"{text} and is otherwise as new")

    def refuse_unknown_gradient(self, layer: Any, name: str, found: list[str]) -> None:
        text = f"y depends on {name} of {type(layer).__name__}, and no gradient of it was found after backward under names such as "
        text += f"{what_was_sought(name)}. Say where it is, of_object(..., gradients={{{name!r}: ...}}), or name the parameters "
        raise ValueError(f"{text}without it, of_object(..., parameters={found})")


def _with_floats(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs that are float arrays or contain one."""
    return [name for name, tree in data.items() if any(map(is_float_array, flatten(tree).values()))]


def _aliases(arrays: Mapping[str, Array]) -> dict[str, list[str]]:
    """Return all names of each array, under its first one."""
    by_identity: dict[int, list[str]] = {}
    for name, a in arrays.items():
        by_identity.setdefault(id(a), []).append(name)
    return {names[0]: names for names in by_identity.values()}


def _moved(a: Array, random: np.random.Generator) -> Array:
    """Return the array, or values around it if all are 0 or all are 1."""
    if a.size and (bool((a == 0).all()) or bool((a == 1).all())):
        return a + array_namespace(a).asarray(random.uniform(-0.5, 0.5, a.shape).astype(a.dtype))
    return a
